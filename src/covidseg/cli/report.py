"""`python src/report.py table=table2`: the table, its statistics and its figures from the runs that are there."""

from pathlib import Path

from omegaconf import DictConfig

from covidseg.cli.app import application
from covidseg.config.paths import row_folders


@application("report")
def main(cfg: DictConfig) -> None:
    """Write <paths.results>/<table>/results and print the table."""
    from covidseg.report import make_report  # matplotlib and scipy, which --help does not need

    rows = row_folders(cfg.paths.experiments)
    folder = make_report(str(cfg.table), Path(cfg.paths.runs), Path(cfg.paths.results), rows)
    for written in (folder / "report.html", *sorted((folder / "figures").glob("contours*.png"))):
        print(written)


if __name__ == "__main__":
    main()
