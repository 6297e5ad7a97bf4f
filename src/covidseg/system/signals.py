"""Being asked to stop: a run notes it and stops where all its processes can, a sweep gathers what it was sent, a batch
is ended by an exception where it stands. The only place that sets handlers.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from covidseg.system.errors import Interrupted
from covidseg.system.hang import HangWatch, leave

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1: what SLURM is told to send before it pre-empts
GRACE_SECONDS = 300.0
ONE_REQUEST_SECONDS = 2.0


class StopRequest:
    """Which signal asked this process to stop (`signum`, 0: none).

    A second Ctrl-C ends the process at once. So does any signal, within ten seconds, where it finds the process waiting
    for others in a collective or a rendezvous, where no Python handler runs (`HangWatch`); and `grace_seconds` after
    the first signal, whatever the process is at.
    """

    def __init__(
        self,
        grace_seconds: float = GRACE_SECONDS,
        farewell: Callable[[str], None] = lambda reason: None,
        waits_in: tuple[str, ...] = (),
        waits_busily: bool = False,
    ):
        """`farewell` is told why, in words, before a process ends that waits for others and cannot stop by itself.

        `waits_in`: folders and files of Python code that such a wait may stand in; `waits_busily`: whether it may keep
        a processor busy (`HangWatch`).
        """
        self.signum = 0
        self._farewell, self._waits_in, self._waits_busily = farewell, waits_in, waits_busily
        self._alarm = threading.Timer(grace_seconds, self._give_up)
        self._alarm.daemon = True

    def install(self) -> None:
        """Take the signals over; again after a library has put handlers of its own."""
        for signum in SIGNALS:
            signal.signal(signum, self._note)

    @contextmanager
    def installed(self) -> Iterator["StopRequest"]:
        """Take the signals over for a block, and give them back."""
        before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.install()
        watch = HangWatch(SIGNALS, self._waits_in_vain, self._waits_in, self._waits_busily)
        watch.start()
        try:
            yield self
        finally:
            watch.stop()
            self._alarm.cancel()
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            os._exit(128 + signum)
        if not self.signum:
            self.signum = signum
            self._alarm.start()
            if signum == signal.SIGINT:
                print("stopping after this step; Ctrl-C again ends at once", file=sys.stderr)

    def _waits_in_vain(self, signum: int) -> None:
        name = signal.Signals(signum).name
        reason = f"asked to end ({name}) while it waited for other processes, which did not come"
        with suppress(Exception):  # the status is worth less than the end
            self._farewell(reason)
        print(f"error: this process: {reason} -> the same command goes on from the last checkpoint", file=sys.stderr)
        leave(signum)

    def _give_up(self) -> None:
        os._exit(128 + self.signum)


@contextmanager
def requests_to_end() -> Iterator[list[int]]:
    """The requests to end that this process got in the block, as signals; one that is ignored (nohup) stays so.

    What comes within two seconds of the first is the same request: `timeout`, make and systemd send two at once. A
    second Ctrl-C is a person's, and always counts.
    """
    caught: list[int] = []
    first = 0.0

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        first = first or time.monotonic()
        if not caught or signum == signal.SIGINT or time.monotonic() - first > ONE_REQUEST_SECONDS:
            caught.append(signum)

    wanted = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, note) for s in wanted}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised where it arrives: past every `except Exception`, through every `finally`."""


@contextmanager
def terminable(what: str) -> Iterator[None]:
    """Let SIGTERM end the block by an exception, so that what was done can be written down; exit status 143."""
    if threading.current_thread() is not threading.main_thread():  # the only one that may set handlers
        yield
        return
    asked = False

    def end(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:  # a scheduler that repeats it must not end the writing
            asked = True
            raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Terminated:
        wrong = "was ended by SIGTERM; what is done is in the output folder"
        raise Interrupted(what, wrong, "the same command goes on from there", signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)
