"""`python src/report.py table=table2`: the table, its statistics and its figures from the runs that are there."""

from pathlib import Path

from omegaconf import DictConfig

from covidseg.cli.app import application


@application("report")
def main(cfg: DictConfig) -> None:
    """Write experiments/<table>/results and print the table."""
    from covidseg.report import make_report  # matplotlib and scipy, which --help does not need

    folder = make_report(str(cfg.table), Path(cfg.paths.runs), Path(cfg.paths.experiments))
    for written in (folder / "report.html", *sorted((folder / "figures").glob("contours*.png"))):
        print(written)


if __name__ == "__main__":
    main()
