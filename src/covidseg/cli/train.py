"""`python src/train.py model=covidsegnet trainer.devices=6`: one run."""

from omegaconf import DictConfig

from covidseg.cli.app import application
from covidseg.config.options import switch
from covidseg.runs.folder import RunFolder, run_dir


@application("train")
def main(cfg: DictConfig) -> float | None:
    """Returns the validation Dice of the evaluated checkpoint, for a sweeper that looks for the highest."""
    folder, dry = RunFolder(run_dir(cfg)), switch(cfg, "dry_run")
    if not dry and folder.has_nothing_to_do(cfg):
        return folder.validation_dice

    from covidseg.training import run  # seconds of imports that `--help`, a typo and a finished run need not wait for

    if dry:
        print(run.would_train(cfg))
    else:
        run.train(cfg)
    return folder.validation_dice


if __name__ == "__main__":
    main()
