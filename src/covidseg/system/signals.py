"""Being asked to stop: the handler only notes it, the run stops where all its processes can stop together."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch
import torch.distributed as dist

from covidseg.system.hang import HangWatch, leave

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1: what SLURM is told to send before it pre-empts
GRACE_SECONDS = 300.0


class StopRequest:
    """Which signal asked this process to stop (`signum`, 0: none).

    A second Ctrl-C ends the process at once. So does any signal, within ten seconds, where it finds the process waiting
    for others in a collective or a rendezvous, where no Python handler runs (`HangWatch`); and `grace_seconds` after
    the first signal, whatever the process is at.
    """

    def __init__(self, grace_seconds: float = GRACE_SECONDS, farewell: Callable[[str], None] = lambda reason: None):
        """`farewell` is told why, in words, before a process ends that waits for others and cannot stop by itself."""
        self.signum = 0
        self._farewell = farewell
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
        libraries = (os.path.dirname(torch.__file__), __file__)
        watch = HangWatch(
            SIGNALS, self._waits_in_vain, lambda: self.signum != 0, libraries, waits_busily=torch.cuda.is_available()
        )
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


def agreed(word: int, device: torch.device) -> int:
    """The largest `word` of all processes; each of them has to call this at the same point."""
    if not dist.is_initialized():
        return word
    shared = torch.tensor([word], device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)
