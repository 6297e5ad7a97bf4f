"""Progress that a terminal shows, and a log file does not."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress


@contextmanager
def case_progress(console: Console, sets: Mapping[str, list]) -> Iterator[Callable[[str], None]]:
    """A bar of the cases, while a terminal watches."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    bar = bars.add_task("scoring", total=sum(map(len, sets.values())))
    with bars:
        yield lambda case: bars.advance(bar)
