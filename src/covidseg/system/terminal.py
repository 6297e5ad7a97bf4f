"""Progress that a terminal shows, and a log file does not."""

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress


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
