"""What a sweep shows: a live table in a terminal, a line per event where there is none (a log file, `nohup`, CI)."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from covidseg.runs.folder import RunFolder
from covidseg.runs.timing import advice, in_short
from covidseg.sweep.rows import Row, State

_STYLE = {
    State.RUNNING: "cyan",
    State.QUEUED: "blue",
    State.ELSEWHERE: "cyan",
    State.DONE: "green",
    State.FAILED: "red",
    State.INTERRUPTED: "yellow",
    State.WAITING: "dim",
}
_ORDER = list(_STYLE)
_REDRAW = 1.0  # seconds between two drawings of the live table
_HEARTBEAT = 300.0  # seconds between two lines where nothing happens


class View:
    """Shows `rows` while they run; a context manager, because the live table has to give the terminal back."""

    def __init__(self, rows: Sequence[Row], console: Console | None = None):
        self.rows = rows
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._shown = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        self._shown = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def event(self, row: Row) -> None:
        """A row changed its state."""
        if self._live:
            self._shown = 0.0
        else:
            count = Counter(other.state for other in self.rows)
            self.note(f"[{count[State.DONE]}/{len(self.rows)} done] {row.name}: {row.state} {details(row)}".rstrip())

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def refresh(self) -> None:
        """Draw again if it is time to."""
        now = time.monotonic()
        if self._live and now - self._shown > _REDRAW:
            self._shown = now
            self._live.update(self._table(), refresh=True)
        elif not self._live and now - self._shown > _HEARTBEAT:
            self._shown = now
            for row in self.rows:
                if row.state is State.RUNNING:
                    self.note(f"  {row.name}: {details(row)}")

    def _table(self) -> Table:
        """As many rows as the terminal is high, those that run and those that failed first."""
        rows = sorted(self.rows, key=lambda row: _ORDER.index(row.state))
        rows.sort(key=lambda row: row.state is State.DONE)
        room = max(4, self.console.height - 4)
        table = table_of((row.name, row.state, details(row)) for row in rows[:room])
        count = Counter(row.state for row in self.rows)
        table.caption = ", ".join(f"{count[state]} {state}" for state in _ORDER if count[state])
        return table


def table_of(lines: Iterable[tuple[str, State, str]]) -> Table:
    """One line per run: its name, its state in colour, what there is to say about it."""
    table = Table(box=None, pad_edge=False, show_header=False, caption_justify="left")
    for column in ("run", "state", "details"):
        table.add_column(column, no_wrap=column != "details", overflow="fold")
    for name, state, text in lines:
        table.add_row(name, f"[{_STYLE[state]}]{state}[/]", text.replace("[", "\\["))
    return table


def details(row: Row) -> str:
    """Device and progress of a running row, the Dice of a finished one, why another stopped."""
    return describe(row.state, row.reason, row.placed_on, row.folder, row.max_steps, row.patches_per_step)


def describe(
    state: State, reason: str, placed_on: Sequence[str], folder: RunFolder, max_steps: int, patches_per_step: int
) -> str:
    """The same from its parts, for a row that is only known from the ledger's file."""
    if state is State.DONE:
        return reason or "; ".join(filter(None, [dice_of(folder), in_short((folder.status or {}).get("seconds"))]))
    if state in (State.RUNNING, State.ELSEWHERE):
        place = f"on {','.join(placed_on)}" if placed_on else reason
        status = folder.status or {}
        parts = [place, *_progress(status, max_steps, patches_per_step), *advice(status.get("seconds") or {})]
        return ", ".join(filter(None, parts))
    if state is State.INTERRUPTED:
        return reason
    if state is State.WAITING and (step := (folder.status or {}).get("step")):
        return f"resumes at step {step} of {max_steps}"
    return reason


def dice_of(folder: RunFolder) -> str:
    """The mean Dice of each structure on the test set, as "Dice lesion 0.712 (n=4)"."""
    scores = []
    for structure, values in _scored_set(folder).items():
        mean = (values.get("dice") or {}).get("mean")
        scores.append(f"{structure} {'undefined' if mean is None else format(mean, '.3f')} (n={values.get('n', '?')})")
    return f"Dice {', '.join(scores)}" if scores else ""


def _scored_set(folder: RunFolder) -> dict[str, Any]:
    sets = (folder.metrics or {}).get("sets") or {}
    return next((sets[name] for name in ("test", "validation", "external") if sets.get(name)), {})


def _progress(status: dict[str, Any], max_steps: int, patches_per_step: int) -> list[str]:
    step, rate = status.get("step") or 0, status.get("patches_per_second")
    if status.get("state") != "running":
        return ["starting"]
    if step >= max_steps:
        done, cases = status.get("evaluated") or (0, 0)
        return [f"step {step} of {max_steps}", f"evaluating {done} of {cases}" if cases else "evaluating"]
    parts = [f"step {step} of {max_steps}"]
    if rate:
        parts += [f"{rate:.3g} patches/s", f"{duration((max_steps - step) * patches_per_step / rate)} left"]
    return parts


def duration(seconds: float) -> str:
    """Seconds as a person says them: "40 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
