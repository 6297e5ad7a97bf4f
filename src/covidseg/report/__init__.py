"""From the runs of a table to its report: Markdown, LaTeX, CSV, statistics, figures, one HTML page."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from covidseg.evaluation.results import COLUMNS
from covidseg.report import page, pictures, text
from covidseg.report.collect import TableResults, collect
from covidseg.report.latex import latex
from covidseg.report.request import Request
from covidseg.report.section import Section
from covidseg.report.sections import brief, sections
from covidseg.report.table import Block, blocks, paper_lawbreakers
from covidseg.report.viewer.pages import viewed
from covidseg.system.files import write_csv, write_json, write_text

__all__ = ["TableResults", "collect", "make_report", "print_table", "summary_rows", "write"]


def make_report(
    table: str,
    runs: Path | str,
    results_root: Path | str,
    experiments: Sequence[Path] = (),
    console: Console | None = None,
    request: Request | None = None,
    data: Path | str = "data",
) -> Path:
    """Collect `runs/<table>`, write `<results_root>/<table>/<results>`, print the table; returns the results' folder.

    `experiments`: folders that define which rows the table should have (`paths.row_folders`); `data`: where prepared
    cases lie, for the viewer. Raises `BadInput` where the request names a row that the table does not have, before
    anything is written.
    """
    request = request or Request()
    results = collect(Path(runs) / table, experiments)
    found = blocks(results, request)
    folder = Path(results_root) / table / request.results
    _write(results, found, folder, request, data)
    _print(brief(results, found, request), console or Console())
    return folder


def write(results: TableResults, folder: Path | str, request: Request | None = None, data: Path | str = "data") -> None:
    """Write every file of the report into `folder`; figures that the runs have nothing for are left out."""
    request = request or Request()
    _write(results, blocks(results, request), Path(folder), request, data)


def print_table(results: TableResults, console: Console | None = None) -> None:
    """Show each structure's table, and what is not finished, in the terminal."""
    _print(brief(results, blocks(results), Request()), console or Console())


def summary_rows(results: TableResults) -> list[dict[str, Any]]:
    """The table as flat lines (the columns of table.csv), for a tracker's summary."""
    return text.csv_rows(blocks(results))


def _write(results: TableResults, found: Sequence[Block], folder: Path, request: Request, data: Path | str) -> None:
    shown = sections(results, found)
    write_csv(folder / "table.csv", text.csv_rows(found), text.CSV_COLUMNS)
    write_csv(folder / "cases.csv", _case_rows(results), ("row", "task", "seed", "fold", *COLUMNS))
    write_json(folder / "statistics.json", _statistics(results, found))
    write_text(folder / "table.md", text.markdown(results.title, shown))
    write_text(folder / "table.tex", latex(results, found))
    for old in (*(folder / "figures").glob("*.png"), *(folder / "figures").glob("*.pdf")):
        old.unlink()  # of rows or cases that are no longer in the table
    drawn = pictures.draw(results, found, folder / "figures", voxels=request.pictures)
    insert = viewed(results, found, folder, request.cases if request.pictures else "none", data)
    write_text(folder / "report.html", page.html(results.title, shown, drawn, insert))


def _print(shown: Sequence[Section], console: Console) -> None:
    for section in shown:
        table = Table(
            title=escape(section.title),
            title_justify="left",
            caption=escape(" ".join(section.notes)),
            caption_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
        )
        for position, name in enumerate(section.header):
            table.add_column(name, justify="right" if position else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*map(escape, row))
        console.print(table)


def _case_rows(results: TableResults) -> list[dict[str, Any]]:
    return [
        {"row": run.row, "task": run.task, "seed": run.seed, "fold": run.fold, **case}
        for run in results.finished
        for case in run.cases
    ]


def _statistics(results: TableResults, found: Sequence[Block]) -> dict[str, Any]:
    return {
        "table": results.table,
        "baseline": results.baseline,
        "finished": [run.name for run in results.finished],
        "unfinished": [{"run": run.name, "state": run.state, "reason": run.reason} for run in results.unfinished],
        "not_scored": [run.name for run in results.not_scored],
        "sets": [
            {
                "set": block.set,
                "structure": block.structure,
                "protocol": block.protocol,
                "lines": [asdict(line) for line in block.lines],
                "comparisons": [one.to_dict() for one in block.comparisons],
                "all_pairs": [one.to_dict() for one in block.all_pairs],
                "ranking": None if block.ranking is None else asdict(block.ranking),
                "strata": [asdict(one) for one in block.strata],
                "volumes": [{"method": one.method, "site": one.site, **asdict(one.agreement)} for one in block.volumes],
                "worst": [asdict(one) for one in block.failures],
                "calibration": [asdict(one) | {"error": one.reliability.error} for one in block.calibrations],
            }
            for block in found
        ],
        "dice_law": {
            "paper": [{"row": row, "structure": structure} for row, structure in paper_lawbreakers(results)],
            "ours": [
                {"method": line.method, "set": line.set, "structure": line.structure, "wrong": line.law_same_cases}
                for block in found
                for line in block.lines
                if line.law
            ],
        },
    }
