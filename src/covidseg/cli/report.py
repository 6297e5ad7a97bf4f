"""`python src/report.py table=table2`: the table, its statistics and its figures from the runs that are there."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from covidseg.cli.app import application
from covidseg.config.paths import row_folders
from covidseg.config.plain import as_dict


@application("report")
def report(cfg: DictConfig) -> None:
    """Write <paths.results>/<table>/<results> and print the table, or the part of it that was asked for."""
    from covidseg.report import make_report  # matplotlib and scipy, which --help does not need
    from covidseg.report.request import Request

    rows = row_folders(cfg.paths.experiments)
    request = Request.of(as_dict(cfg))
    folder = make_report(
        str(cfg.table), Path(cfg.paths.runs), Path(cfg.paths.results), rows, request=request, data=str(cfg.paths.data)
    )
    for written in (folder / "report.html", *sorted((folder / "figures").glob("contours*.png"))):
        print(written)


def main() -> None:
    """A bare word in the first place names the part: `agreement` stands for `part=agreement`."""
    if sys.argv[1:] and sys.argv[1].isidentifier():
        sys.argv[1] = f"part={sys.argv[1]}"
    report()


if __name__ == "__main__":
    main()
