"""The processes of one run: they begin from the first one's decisions and end together, whoever fails."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from covidseg.runs.folder import RunFolder
from covidseg.system.errors import CovidSegError, EnvironmentFault, Interrupted
from covidseg.system.signals import SIGNALS
from covidseg.training.callbacks import LossNotFinite

_PREPARED = "COVIDSEG_PREPARED"  # "<pid>:<folder>": what the first process opened, for those it starts
_PARENT = os.getppid()  # remembered: whose parent died is given another
_INIT = 1  # the parent of a process whose own has died; in a container it may be the first process of a run
_FAREWELL_SECONDS = 30
_PR_SET_PDEATHSIG = 1
_UNANSWERED = ("timed out", "timeout", "connection closed by peer", "connection reset")  # as gloo, NCCL, a store say
_TAKEN = ("address already in use", "eaddrinuse")
_GOES_ON = "the same command goes on from the last checkpoint"


def rank() -> int:
    """This process's number among those of the run, known before any of them is connected."""
    return rank_zero_only.rank or 0  # type: ignore[attr-defined]


@contextmanager
def announced_to_children(folder: Path) -> Iterator[None]:
    """On the first process: let those it starts within the block open the same prepared folder."""
    if rank():
        yield
        return
    os.environ[_PREPARED] = f"{os.getpid()}:{folder}"
    try:
        yield
    finally:
        os.environ.pop(_PREPARED, None)


def announced() -> str | None:
    """The folder the first process announced, if it started this one.

    Whoever else inherited the variable, such as a job's task that a cluster started, has another parent.
    """
    pid, folder = _announcement()
    return folder if rank() and pid and (pid == str(_PARENT) or _PARENT == _INIT) else None


def follow_parent() -> None:
    """In a process the first one started: die with it, even if it is killed; a lost collective would wait for ever."""
    if announced() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if str(os.getppid()) != _announcement()[0]:
            os._exit(1)


def _announcement() -> tuple[str, str]:
    pid, _, folder = os.environ.get(_PREPARED, "").partition(":")
    return pid, folder


@contextmanager
def ending_together(trainer: pl.Trainer, folder: RunFolder) -> Iterator[None]:
    """Around everything the processes do in common: none outlives another's failure, and the first one reports.

    What all processes raise alike (`Interrupted`, `LossNotFinite`) is reported by the first, and the others leave with
    status 0, since Lightning kills the run as soon as one of them leaves with another. What one process raises is left
    in status.json, which survives even where the first is killed while it waits for the one that failed.
    """
    try:
        yield
    except (Interrupted, LossNotFinite):
        _part(trainer)
        raise
    except BaseException as error:
        if rank():
            code = getattr(error, "exit_code", 1)
            folder.write_status("failed", reason=" ".join(str(error).split()), process=rank(), exit_status=code)
            raise
        _leave_us_alive()
        cause = _cause_elsewhere(trainer, folder, error)
        for child in _children(trainer):
            child.kill()
        if cause:
            raise cause from error
        raise
    else:
        _part(trainer)


def _part(trainer: pl.Trainer) -> None:
    """Leave the process group after the last common act; the first process waits for those it started.

    Those end here: what they would do on the way out is the first one's to do, or takes seconds and frees memory.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    if announced():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    for child in _children(trainer):
        with suppress(subprocess.TimeoutExpired):
            child.wait(_FAREWELL_SECONDS)


def _cause_elsewhere(trainer: pl.Trainer, folder: RunFolder, error: BaseException) -> CovidSegError | None:
    """What another process failed of, if this one's exception is only the echo of it."""
    if not dist.is_initialized():
        return _unanswered(error) if trainer.world_size > 1 else None
    said = folder.status or {}
    if said.get("state") == "failed":
        cause = CovidSegError(f"process {said.get('process')}", said.get("reason", "failed"))
        cause.exit_code = said.get("exit_status", 1)
        return cause
    for number, child in enumerate(_children(trainer), start=1):
        if _is_stopped(child.pid):
            wrong = "was stopped (SIGSTOP, or a frozen container) and did not answer"
            return EnvironmentFault(f"process {number}", wrong, _GOES_ON)
        with suppress(subprocess.TimeoutExpired):
            status = child.wait(1)
            if status - 128 in SIGNALS:
                name = signal.Signals(status - 128).name
                return Interrupted(f"process {number}", f"was ended by {name}", _GOES_ON, status - 128)
            if status < 0:
                name = signal.Signals(-status).name
                return EnvironmentFault(f"process {number}", f"was ended by {name}", "out of memory? lower the batch")
    return _unanswered(error)


def _unanswered(error: BaseException) -> CovidSegError | None:
    """What a library says of others that do not come or go on, as one line; None where it says something else."""
    said = str(error).lower()
    if any(text in said for text in _TAKEN):
        return EnvironmentFault("MASTER_PORT", "is in use on this machine", "by another run? set it to a free port")
    if any(text in said for text in _UNANSWERED):
        wrong = "did not answer within trainer.collective_timeout_minutes: was it stopped, is its node gone?"
        return EnvironmentFault("another process", wrong, _GOES_ON)
    return None


def _is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal; Linux, elsewhere that is not known."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def _leave_us_alive() -> None:
    """Stop Lightning's watch over the other processes: it would kill this one while it still records what happened."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._finished = True  # type: ignore[attr-defined]


def _children(trainer: pl.Trainer) -> list[subprocess.Popen]:
    return getattr(trainer.strategy.launcher, "procs", [])
