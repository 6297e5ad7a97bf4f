"""`python src/status.py`: what each run of the sweeps, and each run made by itself, is doing."""

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from covidseg.cli.app import application
from covidseg.runs.folder import RunFolder, last_attempt
from covidseg.scans.gate.names import printable
from covidseg.sweep.ledger import is_held, read_ledger
from covidseg.sweep.rows import State, judged
from covidseg.sweep.view import describe, table_of
from covidseg.system.errors import BadInput

_PIPED_WIDTH = 200  # columns where nobody says how wide the reader is


@application("status")
def main(cfg: DictConfig) -> None:
    """Print the runs below `paths.runs`, sweep by sweep; with `watch`, again and again while a sweep is running."""
    runs, console = Path(cfg.paths.runs), Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    shown, running = overview(runs, cfg.name)
    if cfg.watch is None or not running:
        console.print(shown)
        return
    with suppress(KeyboardInterrupt), Live(shown, console=console, auto_refresh=False) as live:
        while running:
            time.sleep(cfg.watch)
            shown, running = overview(runs, cfg.name)
            live.update(shown, refresh=True)


def overview(runs: Path, name: str | None = None) -> tuple[Group, bool]:
    """Tables of the newest sweep of each name, of those that run, of all other runs; and whether a sweep runs."""
    parts: list[RenderableType] = []
    seen: set[str] = set()
    any_held = False
    for path in sorted((runs / ".sweeps").glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True):
        sweep, held = read_ledger(path), is_held(path)
        if sweep is None:
            parts.append(Text(f"{printable(path.name)} is no ledger of a sweep"))
            continue
        if (name and sweep["sweep"] != name) or (sweep["sweep"] in seen and not held):
            continue
        any_held |= held
        seen.add(sweep["sweep"])
        lines = [_line(path.parent, row, held) for row in sweep["rows"]]
        seen.update(line[0] for line in lines)
        where = f"running as process {sweep['pid']} on {sweep['host']}" if held else "not running"
        count = Counter(state for _, state, _ in lines)
        counted = ", ".join(f"{number} {state}" for state, number in count.items())
        parts += [Text(f"{sweep['sweep']}, {where}: {counted}", style="bold"), table_of(lines), Text()]
    alone = [
        _alone(RunFolder(path.parent), path.parent.relative_to(runs).as_posix())
        for path in sorted(runs.glob(f"{name or '*'}/*/*/*/status.json"))
        if path.parent.relative_to(runs).as_posix() not in seen
    ]
    if alone:
        parts += [Text("runs of no sweep shown here", style="bold"), table_of(alone)]
    where = f"{runs.name}/{name}" if name else runs.name
    return Group(*(parts or [Text(f"no runs below {where}: python src/train.py makes one")])), any_held


def _line(ledger: Path, row: dict[str, Any], held: bool) -> tuple[str, State, str]:
    """A row of a sweep, by its folder; where it was placed, and what a cluster's queue says, only the ledger knows."""
    folder = RunFolder((ledger / row["folder"]).resolve())
    state, reason = judged(folder, row["hash"])
    if (
        held
        and row["state"] in (State.RUNNING, State.QUEUED)
        and state in (State.WAITING, State.ELSEWHERE, State.FAILED)
    ):
        state, reason = State(row["state"]), row["reason"]
    elif not held and row["state"] in (State.RUNNING, State.QUEUED) and state is State.ELSEWHERE:
        state = State.RUNNING  # of a driver that is gone or has detached: somebody holds the run's lock
    elif state is State.WAITING and row["state"] is State.QUEUED.value and row["placed_on"]:
        state, reason = State.QUEUED, "submitted, and nobody watches it: the same command does"
    elif state is State.WAITING and row["state"] in (State.RUNNING, State.INTERRUPTED):
        state, reason = State.INTERRUPTED, row["reason"] or "its driver is gone; resumes the next time"
    text = describe(state, reason, row["placed_on"], folder, row["max_steps"], row["patches_per_step"])
    return row["name"], state, text


def _alone(folder: RunFolder, name: str) -> tuple[str, State, str]:
    """A run that was started by itself; its process holds its lock while it lives."""
    status = folder.status or {}
    try:
        held = folder.config_hash
    except BadInput as error:
        return name, State.FAILED, str(error)
    state, reason = judged(folder, held or "")
    if state is State.ELSEWHERE:
        state = State.RUNNING
    elif state is State.WAITING:
        state, reason = State.INTERRUPTED, f"stopped at step {status.get('step', 0)} of {status.get('max_steps', '?')}"
    patches = last_attempt(folder.manifest).get("effective_batch_size", 0)
    return name, state, describe(state, reason, [], folder, status.get("max_steps") or 0, patches)


if __name__ == "__main__":
    main()
