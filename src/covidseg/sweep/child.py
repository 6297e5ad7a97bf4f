"""A run as a child process that cannot outlive its driver unnoticed, and leaves nothing behind on its devices."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# What a distributed launcher leaves in the environment: with it, a run would take itself for a rank of another one.
_RANK_VARIABLES = {"LOCAL_RANK", "NODE_RANK", "GLOBAL_RANK", "RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
_RANK_VARIABLES |= {"MASTER_ADDR", "MASTER_PORT"}
_RANK_PREFIXES = ("TORCHELASTIC_", "SLURM_")
_NO_RANK_VARIABLES = {"SLURM_CONF"}  # where the cluster is
_PATIENCE = 5.0  # seconds that left-over processes of a run have before each harder step
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # nothing may be loaded between fork and exec


def program() -> list[str]:
    """The command that starts this very program again, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [sys.executable, *(["-m", spec.name] if spec else [os.path.abspath(sys.argv[0])])]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without the marks of a rank, and with `extra`."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key in _NO_RANK_VARIABLES or not (key in _RANK_VARIABLES or key.startswith(_RANK_PREFIXES))
    }
    return {**kept, **extra}


class Child:
    """A program in a session of its own, its output appended to `log`.

    Of its own, so that a Ctrl-C in the terminal reaches only the driver, which then ends its runs one way; and so that
    the ranks a run starts can be found by their process group when the run itself was killed.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]):
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as stream:
            self.log, self._log_start = log, stream.tell()
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
                preexec_fn=_die_with_driver if _libc else None,
            )
        self.started = time.monotonic()
        self._left_over_since: float | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_status(self) -> int | None:
        """The exit status (minus the signal that killed it) once the program and all it started are gone; else None."""
        if self._process.poll() is None:
            return None
        if self._group_is_gone():
            return self._process.returncode
        now = time.monotonic()
        self._left_over_since = self._left_over_since or now
        waited = now - self._left_over_since
        if waited > 3 * _PATIENCE:  # unkillable: there is nothing more to do than to go on
            return self._process.returncode
        if waited > 2 * _PATIENCE:
            self._signal_group(signal.SIGKILL)
        elif waited > _PATIENCE or self._process.returncode != 0:
            self._signal_group(signal.SIGTERM)
        return None

    def terminate(self) -> None:
        """Ask the run to save and end. Its ranks learn it from the run, so that all save the same step."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the run and all it started, now."""
        self._signal_group(signal.SIGKILL)

    def last_line(self) -> str:
        """What this attempt printed last."""
        return last_line(self.log, self._log_start)

    def _group_is_gone(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return sys.platform == "linux" and not _lives_in_group(self.pid)

    def _signal_group(self, signum: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signum)


def last_line(log: Path, start: int = 0) -> str:
    """The line of `log` behind byte `start` that says most: the last `error: ...`, or the last one at all."""
    with suppress(FileNotFoundError), open(log, "rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(start, end - 65536))
        text = stream.read().decode(errors="replace")
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (["", *lines, *errors][-1]).removeprefix("error: ")
    return ""


def _lives_in_group(group: int) -> bool:
    """Whether a process of the group is more than a zombie: in a container there may be nobody who reaps those."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


def _die_with_driver() -> None:
    """Between fork and exec: when the driver dies, even by SIGKILL, the kernel sends this process a SIGTERM."""
    if _libc:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
