"""`python src/train.py model=covidsegnet trainer.devices=6`: one run."""

from omegaconf import DictConfig

from covidseg.cli.app import application


@application("train")
def main(cfg: DictConfig) -> None:
    from covidseg.training import train  # seconds of imports that `--help` and a typo need not wait for

    train(cfg)


if __name__ == "__main__":
    main()
