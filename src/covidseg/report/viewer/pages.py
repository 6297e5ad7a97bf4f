"""The viewer of a table: in its page for the cases that say most, in pages beside it for the others."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covidseg.report import page
from covidseg.report.collect import TableResults
from covidseg.report.section import Section
from covidseg.report.table import Block, method_runs, scores
from covidseg.report.viewer import markup
from covidseg.report.viewer.gather import IN_PAGE, chosen, gather
from covidseg.report.viewer.volume import Shown, packed
from covidseg.system.files import write_text
from covidseg.system.terminal import show_progress

FOLDER = "cases"  # beside the page
log = logging.getLogger(__name__)


def viewed(
    results: TableResults, blocks: Sequence[Block], folder: Path, cases: str, data: Path | str
) -> page.Insert | None:
    """What the page of a table shows of its scans; pages of further cases are written into `folder`.

    `cases`: `all`, `chosen`, `none`. None where there is nothing to show: the scans or the masks are not here.
    """
    for old in (folder / FOLDER).glob("[0-9][0-9][0-9][0-9].html"):
        old.unlink()  # of cases that are no longer in the table
    if cases == "none":
        return None
    titles = {line.method: line.title for block in blocks for line in block.lines}
    choices = chosen(results, blocks)
    choices = choices if cases == "all" else choices[:IN_PAGE]
    inside: list[dict[str, Any]] = []
    links: dict[tuple[str, str], str] = {}
    for shown in show_progress(gather(results, data, choices), len(choices), "cases for the page"):
        if len(inside) < IN_PAGE:
            inside.append(packed(shown))
            continue
        links[shown.set, shown.case] = name = f"{FOLDER}/{len(links) + 1:04d}.html"
        write_text(folder / name, case_page(shown, titles))
    if not inside:
        log.info("the page opens no case: none lies prepared in %s with masks that a run kept", data)
        return None
    plots = "".join(markup.dots(plot, titles) for plot in _plots(results, blocks, links))
    return _insert("Case by case", titles, inside, plots)


def case_page(shown: Shown, titles: Mapping[str, str], sections: Sequence[Section] = ()) -> str:
    """A page of one case alone, whole by itself."""
    return page.html(shown.label, sections, insert=_insert("Slice by slice", titles, [packed(shown)]))


def _insert(title: str, titles: Mapping[str, str], cases: Sequence[Mapping[str, Any]], plots: str = "") -> page.Insert:
    return page.Insert(title, markup.viewer(titles, cases, title, plots), markup.style(), markup.script())


def _plots(results: TableResults, blocks: Sequence[Block], links: Mapping[tuple[str, str], str]) -> list[markup.Dots]:
    runs = method_runs(results)
    plots = []
    for block in blocks:
        dice = {method: scores(own, block.set, block.structure, "dice") for method, own in runs.items()}
        own_links = {case: link for (set_name, case), link in links.items() if set_name == block.set}
        if any(dice.values()):
            plots.append(markup.Dots(block.where, block.set, block.structure, dice, own_links))
    return plots
