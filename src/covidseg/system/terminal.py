"""Progress that a terminal shows, and a log file does not."""

import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    track,
)

log = logging.getLogger(__name__)


def print_anything() -> None:
    """Let no name end a command because a terminal cannot show its letters: they are escaped there.

    An ASCII or Latin-1 locale, as on many servers, refuses `José` in a print; a batch has other scans to do.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a notebook or a test puts in its place
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def shown(bars: Progress) -> Iterator[None]:
    """Show the bars while a terminal watches; elsewhere rich before 14.3 prints an empty line for them."""
    with bars if bars.console.is_terminal else nullcontext():
        yield


@contextmanager
def case_progress(console: Console, sets: Mapping[str, list]) -> Iterator[Callable[[str], None]]:
    """A bar of the cases, while a terminal watches."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    bars = Progress(*columns, console=console, transient=True)
    bar = bars.add_task("scoring", total=sum(map(len, sets.values())))
    with shown(bars):
        yield lambda case: bars.advance(bar)


@contextmanager
def window_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar of the windows of one scan, while a terminal watches."""
    columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    bars = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    tasks: dict[str, TaskID] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done)

    with shown(bars):
        yield update


def show_progress(results: Iterator[Any], total: int, title: str) -> Iterator[Any]:
    """Pass `results` on under a progress bar with the time left, on a terminal; elsewhere one line says what begins."""
    console = Console(stderr=True)
    if total and console.is_terminal:
        return iter(track(results, title, total, console=console))
    if total:
        log.info("%s: %d", title, total)
    return results
