"""wandb's service process, which no call into wandb may wait for longer than it was given.

Nothing of wandb's bounds a call whose service was stopped (SIGSTOP, a debugger, a frozen container): `finish` and the
interpreter's exit wait for ever. So a call runs in a thread of its own that is left behind when its time is up, and the
service is killed then, which also wakes whatever still waits for it. It writes what it has in blocks and keeps nothing
on SIGTERM either, so there is no gentler signal to begin with.
"""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_SERVICE = "wandb-core"


class NoAnswer(TimeoutError):
    """A call into wandb that took longer than it may."""


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises; `NoAnswer` after `seconds`, with the call left to itself."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["value"] = call()
        except BaseException as error:  # wandb's teardown raises SystemExit
            outcome["error"] = error

    thread = threading.Thread(target=work, name="tracking", daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "value" not in outcome:
        raise NoAnswer(f"no answer in {seconds:g} s")
    return outcome["value"]


def kill_service() -> None:
    """Kill the service that this process started, stopped or not."""
    for process in _services():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def end_service(seconds: float) -> None:
    """End the service, by force after `seconds`: a run that could not start would keep its id in use."""
    import wandb

    with suppress(Exception, SystemExit):
        within(seconds, lambda: wandb.teardown(exit_code=1))
    kill_service()


class ExitWatch:
    """Sees to it that the interpreter's exit waits for wandb no longer than `seconds`.

    wandb waits in an exit handler of its own. `arm`, called after a run has started, puts one before it that has the
    same work done by a thread. That exists already (none can be started at exit), and is left behind when its time is
    up: the work may also wait for a lock that a call to a dripping server holds.
    """

    def __init__(self) -> None:
        self._leaving, self._done = threading.Event(), threading.Event()
        self._seconds: float | None = None

    def arm(self, seconds: float) -> None:
        """Watch the exit from now on; the last caller's time counts."""
        if self._seconds is None:
            threading.Thread(target=self._end, name="tracking-exit", daemon=True).start()
        self._seconds = seconds
        atexit.unregister(self._leave)
        atexit.register(self._leave)  # the last one registered runs first

    def _leave(self) -> None:
        self._leaving.set()
        if not self._done.wait(self._seconds):
            kill_service()

    def _end(self) -> None:
        import wandb

        self._leaving.wait()
        with suppress(Exception, SystemExit):
            wandb.teardown(exit_code=1)  # a run that is still open was not closed by us: it failed
        self._done.set()


def _services() -> Iterator[int]:
    """Process ids of this process's children that are wandb's service. Linux; elsewhere none is found."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError, ValueError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if fields["Name"].strip() == _SERVICE and int(fields["PPid"]) == os.getpid():
                yield int(status.parent.name)
