"""A sweep from its rows to its table."""

import io
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from covidseg.config.options import switch
from covidseg.config.paths import row_folders
from covidseg.config.plain import as_dict
from covidseg.runs.folder import NOT_SCORED
from covidseg.sweep.account import account
from covidseg.sweep.driver import Executor, drive
from covidseg.sweep.estimate import (
    check_disk,
    expected_time,
    is_long,
    measured_runs,
    network_sizes,
    price,
    quick_rate,
)
from covidseg.sweep.ledger import Ledger
from covidseg.sweep.rows import CLASH, Row, State, key_of
from covidseg.sweep.schedule import best_order
from covidseg.sweep.view import View
from covidseg.system.errors import BadInput, CovidSegError
from covidseg.system.files import read_csv

_TEXTS = ("method", "title", "set", "structure", "state", "seeds")  # of table.csv; its other columns are numbers


def plan(jobs: Sequence[tuple[list[str], DictConfig]]) -> list[Row]:
    """The rows of all (overrides, composed config).

    Raises BadInput for an empty sweep (a `glob(*)` that matches nothing is silently one) and for two runs that would
    share a folder.
    """
    if not jobs:
        raise BadInput(
            "sweep", "has no runs", "a glob(*) matched nothing: name one group, as experiments/table2=glob(*)"
        )
    rows: dict[Path, Row] = {}
    for overrides, cfg in jobs:
        row = Row.plan(overrides, cfg)
        other = rows.setdefault(row.folder.path, row)
        if other.overrides != row.overrides:
            differs = next((override for override in row.overrides if override not in other.overrides), "optimizer.lr")
            key = key_of(differs)
            raise BadInput(
                row.name,
                f"two runs of this sweep would share the folder ({_only(other, row)} and {_only(row, other)})",
                f"put what differs into its name: 'row=mine-${{{key}}}'",
            )
    return list(rows.values())


def _only(row: Row, other: Row) -> str:
    """The overrides that `other` has not got."""
    return " ".join(override for override in row.overrides if override not in other.overrides) or "no override"


def group_of(rows: Sequence[Row]) -> str:
    """What the rows are tracked and reported under: their first folder, when they share it."""
    names = {row.name.split("/")[0] for row in rows}
    return names.pop() if len(names) == 1 else "sweep"


def launch(
    rows: Sequence[Row],
    executor: Executor,
    cfg: DictConfig,
    *,
    retry_failed: bool,
    grace_seconds: float,
    report: bool,
) -> None:
    """Make what is missing of `rows`, show it, and end with the table; with `cfg.dry_run` only say what is missing.

    `cfg`: the sweep's own config, for `paths` and `logger`. Raises CovidSegError when a run is unfinished at the end,
    Interrupted when stopped by a signal, EnvironmentFault when the disk is too small, BadInput when it runs already.
    """
    group, start = group_of(rows), time.monotonic()
    ledger = Ledger(Path(cfg.hydra.sweep.dir), group, rows)
    view = View(rows)
    if "dry_run" in cfg and switch(cfg, "dry_run"):
        for row in rows:
            executor.fit(row)
            row.judge(retry_failed)
        for row in _announce(rows, executor, view, Path(cfg.paths.runs)):
            view.note(f"{row.name}: {row.state}{f', {row.reason}' if row.reason else ''}")
        view.note("dry_run=true: nothing was started")
        return
    with ledger.held():
        ledger.save()  # `status` and a second start see this sweep while it is still being planned
        for row in rows:
            executor.fit(row)
            row.judge(retry_failed)
        rows = _announce(rows, executor, view, Path(cfg.paths.runs))
        ledger.save()
        drive(rows, executor, ledger, view, grace_seconds)
    if executor.detached and (left := [row for row in rows if row.state in (State.QUEUED, State.RUNNING)]):
        held_back = sum(row.state is State.WAITING for row in rows)
        more = f", {held_back} wait for room in the queue: start the same command again" if held_back else ""
        view.note(f"{group}: {len(left)} jobs are in the queue{more}; `make status` shows them")
        return
    if executor.slots and (spent := account(rows, executor.slots, time.monotonic() - start)):
        view.note(str(spent))
    if report and any(row.state is State.DONE and not row.folder.asks_for_no_score for row in rows):
        _table(cfg, group, view)
    _verdict(rows, group, view)


def _announce(rows: Sequence[Row], executor: Executor, view: View, runs: Path) -> list[Row]:
    """Say what there is to do and what it will take; returns the rows in the order in which they should start."""
    missing = [row for row in rows if row.state is State.WAITING]
    count = Counter(row.state for row in rows)
    resumed = sum(row.resumes for row in missing)
    parts = [f"{count[State.DONE]} done"] if count[State.DONE] else []
    parts += [f"{len(missing)} to run" + (f" ({resumed} of them resumed)" if resumed else "")] if missing else []
    parts += [f"{count[state]} {state}" for state in (State.FAILED, State.ELSEWHERE) if count[state]]
    view.note(f"{len(rows)} runs: {', '.join(parts)}; on {executor}")
    if missing:
        sizes = network_sizes(missing)
        known = measured_runs(runs, executor.on_gpu)
        priced = price(missing, sizes, known)
        if executor.slots and priced.measured + priced.scaled < len(missing) and is_long(missing, sizes):
            view.note("no run of these networks was measured here yet: trying how fast this machine trains")
            rate = quick_rate(missing, sizes, executor.environment_of_one())
            priced = price(missing, sizes, known, rate)
        view.note(expected_time(missing, priced, executor.slots))
        view.note(check_disk(missing, sizes, runs))
    for row in rows:
        if row.state is State.FAILED:
            view.event(row)
    return best_order(rows, executor.slots) if executor.slots else list(rows)


def _table(cfg: DictConfig, group: str, view: View) -> None:
    """Write and print the group's table if it is one of the experiments', and track it. A fault here loses no run."""
    if not any((folder / group).is_dir() for folder in row_folders(cfg.paths.experiments)):
        return
    named = {name: cfg.paths[name] for name in ("runs", "results", "experiments", "data")}
    paths = [f"paths.{name}={place}" for name, place in named.items() if place is not None]
    done = subprocess.run([sys.executable, "-m", "covidseg.cli.report", f"table={group}", *paths])
    if done.returncode:
        view.note(f"the table could not be written (exit status {done.returncode}): python src/report.py table={group}")
        return
    results = Path(cfg.paths.results) / group / "results"
    lines = read_csv(results / "table.csv", _TEXTS)
    summary = Path(cfg.hydra.sweep.dir) / group
    _track(as_dict(cfg.logger), group, lines, results, summary)
    if list(Path(cfg.paths.runs).glob(f"{group}/*/*/*/wandb/offline-run-*")):
        view.note(f"wandb sync {cfg.paths.runs}/{group}/*/*/*/wandb {summary}/wandb")


def _track(options: Mapping[str, Any], group: str, lines: list[dict[str, Any]], results: Path, folder: Path) -> None:
    from covidseg.tracking import log_sweep_summary  # imports torch, which nothing before this needed

    with redirect_stdout(io.StringIO()):  # its own sync line: the caller prints one for all runs
        log_sweep_summary(options, group, lines, folder, sorted((results / "figures").glob("*.png")))


def _verdict(rows: Sequence[Row], group: str, view: View) -> None:
    """Name what is unfinished, by an error whose exit status a script can see."""
    unfinished = [row for row in rows if row.state is not State.DONE]
    if not unfinished:
        unscored = sum(row.folder.asks_for_no_score for row in rows)
        view.note(f"{group}: all {len(rows)} runs are done" + (f", {unscored} {NOT_SCORED}" if unscored else ""))
        return
    for row in unfinished:
        view.event(row)
    count = Counter(row.state for row in unfinished)
    counted = ", ".join(f"{number} {state}" for state, number in count.items())
    clashes = sum(row.reason == CLASH for row in unfinished)
    advice = []
    if clashes < len(unfinished):
        advice.append("the same command goes on")
    if clashes < count[State.FAILED]:
        advice.append("with hydra.launcher.retry_failed=true also with the failed ones")
    if clashes:
        advice.append("another name= or row= has room for the new configurations")
    raise CovidSegError(group, f"{len(unfinished)} of {len(rows)} runs are unfinished ({counted})", "; ".join(advice))
