"""The loop of a sweep: start what is missing, see what became of it, until nothing is left that could start."""

import signal
import time
from collections.abc import Sequence
from typing import Protocol

from covidseg.runs.folder import UNSCORED
from covidseg.sweep.ledger import Ledger
from covidseg.sweep.rows import Row, State
from covidseg.sweep.view import View
from covidseg.system.errors import CovidSegError, Interrupted
from covidseg.system.files import write_json
from covidseg.system.signals import requests_to_end

_POLL = 0.2  # seconds
_LOOK_ELSEWHERE = 3.0  # seconds between looks at the lock of a run that another process holds
_INTERRUPTED = {128 + signum for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)}


class Executor(Protocol):
    """Where rows run: `pool.LocalPool` or `slurm.Cluster`."""

    busy: bool
    slots: int | None  # runs at a time, where that is known
    detached: bool  # whether the driver ends once the rows are submitted
    on_gpu: bool

    def fit(self, row: Row) -> None: ...
    def next(self, waiting: Sequence[Row]) -> Row | None: ...
    def start(self, row: Row) -> None: ...
    def flush(self) -> list[Row]: ...
    def environment_of_one(self) -> dict[str, str]: ...
    def ended(self) -> list[tuple[Row, int | None, str]]: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def drive(rows: Sequence[Row], executor: Executor, ledger: Ledger, view: View, grace_seconds: float) -> None:
    """Run every waiting row; on return each row's state says what became of it.

    Of a detached executor's rows some are queued or running then, and nobody watches them.

    Raises Interrupted after a SIGINT, SIGTERM or SIGHUP, when all runs have saved their state and ended. A second one,
    or `grace_seconds`, ends those that have not.
    """
    with requests_to_end() as caught, view:
        looked = stopping = 0.0
        while True:
            for row, status, last_line in executor.ended():
                settle(row, status, last_line)
                ledger.save()
                view.event(row)
            if caught and not stopping:
                stopping = time.monotonic()
                view.note(f"{_name(caught[0])}: the runs save their state and end; once more ends them now")
                executor.terminate()
            elif len(caught) > 1 or (stopping and time.monotonic() - stopping > grace_seconds):
                executor.kill()
            if not stopping:
                if time.monotonic() - looked > _LOOK_ELSEWHERE:
                    looked = time.monotonic()
                    for row in _with(rows, State.ELSEWHERE):
                        row.judge()
                        if row.state is not State.ELSEWHERE:
                            ledger.save()
                            view.event(row)
                _fill(rows, executor, ledger, view)
                if executor.detached:
                    break
            if not executor.busy and (stopping or not _with(rows, State.WAITING, State.ELSEWHERE)):
                break
            view.refresh()
            time.sleep(_POLL)
    if caught:
        raise Interrupted("sweep", f"stopped by {_name(caught[0])}", "the same command goes on from here", caught[0])


def _name(signum: int) -> str:
    return signal.Signals(signum).name


def settle(row: Row, status: int | None, last_line: str) -> None:
    """Set the row's state from its folder; only where that is silent, from the exit status and the last line.

    An exit status of 0 means nothing by itself: Lightning leaves with 0 after a SIGTERM. Scores in `metrics.json` say
    done.
    """
    row.judge(retry_failed=True)
    if row.state is not State.WAITING:
        return
    said = row.folder.status or {}
    this_time = said if row.wrote_status() else {}  # or it stands there from an earlier attempt
    if status in _INTERRUPTED or this_time.get("state") == "interrupted":
        row.state, row.reason = State.INTERRUPTED, "saved its state; resumes the next time"
    elif this_time.get("state") == "failed":
        row.state, row.reason = State.FAILED, this_time.get("reason") or last_line
    elif row.folder.is_unscored:
        row.state, row.reason = State.FAILED, UNSCORED
    elif status is not None and 0 < status <= 128:
        row.state, row.reason = State.FAILED, last_line or f"exit status {status}"
        write_json(row.folder.path / "status.json", {**said, "state": "failed", "reason": row.reason})
    else:
        row.state, row.reason = State.INTERRUPTED, _cut_short(status)


def _fill(rows: Sequence[Row], executor: Executor, ledger: Ledger, view: View) -> None:
    while (row := executor.next(_with(rows, State.WAITING))) is not None:
        row.judge(retry_failed=True)  # another sweep may have made it, or be making it, since this one was planned
        if row.state is State.WAITING:
            row.state, row.started = State.RUNNING, time.time()
            try:
                executor.start(row)
            except CovidSegError as error:
                row.state, row.reason = State.FAILED, str(error)
        ledger.save()
        view.event(row)
    for row in executor.flush():
        ledger.save()
        view.event(row)


def _with(rows: Sequence[Row], *states: State) -> list[Row]:
    return [row for row in rows if row.state in states]


def _cut_short(status: int | None) -> str:
    if status is None:
        return "left the queue without a result; resumes the next time"
    if status > 128:
        status = 128 - status  # how a shell, and so a batch script, says which signal killed the run
    if status == 0:
        return "ended without a result (exit status 0); starts again the next time"
    name = _name(-status)
    return f"killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}; resumes the next time"
