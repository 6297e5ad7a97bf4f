"""`python src/train.py model=covidsegnet trainer.devices=6`: one run."""

from omegaconf import DictConfig

from covidseg.cli.app import application
from covidseg.cli.predict import switch
from covidseg.runs.folder import RunFolder, run_dir


@application("train")
def main(cfg: DictConfig) -> float | None:
    """Returns the validation Dice of the evaluated checkpoint, for a sweeper that looks for the highest."""
    from covidseg.training.run import (  # seconds of imports that `--help` and a typo need not wait for
        train,
        would_train,
    )

    if switch(cfg, "dry_run"):
        print(would_train(cfg))
    else:
        train(cfg)
    return RunFolder(run_dir(cfg)).validation_dice


if __name__ == "__main__":
    main()
