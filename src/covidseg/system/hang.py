"""Ends a process that was asked to stop while its main thread waits inside a library, where no signal handler runs.

Python runs a handler between two bytecodes of the main thread. A process that waits for others in a collective, or for
those who never come to a rendezvous, is in the middle of one, for minutes. A thread hears of the signal through the
wake-up file that the C handler writes into, and looks whether the main thread moves.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

WAIT_SECONDS = 7.0  # without a bytecode: with the looks, the process ends within ten seconds of the signal
_LOOK_SECONDS = 0.5
_BUSY = 0.2  # of a processor: above it the thread computes, and does not wait


class HangWatch:
    """Calls `end(signum)` when one of `signals` came and the main thread has waited for other processes since.

    That it waits is told by where it stands still: in a library whose code lies in one of the folders or files
    `waits_in`. Elsewhere it may be writing a checkpoint to a slow disk. `waits_busily`: whether waiting may keep a
    processor busy, as it does for a GPU; elsewhere a main thread that stands still and computes (a backward pass takes
    one call) is left alone.
    """

    def __init__(
        self,
        signals: tuple[signal.Signals, ...],
        end: Callable[[int], None],
        waits_in: tuple[str, ...],
        waits_busily: bool = False,
    ):
        self._signals, self._end = signals, end
        self._waits_in, self._waits_busily = waits_in, waits_busily
        self._main = threading.main_thread().ident
        self._before = -1
        self._read, self._write = socket.socketpair()

    def start(self) -> None:
        """Listen from now on. In the main thread only, which alone may set the wake-up file."""
        self._write.setblocking(False)
        self._before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="hang-watch", daemon=True).start()

    def stop(self) -> None:
        """Listen no longer."""
        signal.set_wakeup_fd(self._before)
        self._write.close()  # ends the thread

    def _listen(self) -> None:
        while heard := self._read.recv(64):
            for signum in heard:
                if signum in self._signals:
                    self._watch(signum)
                    return

    def _watch(self, signum: int) -> None:
        place, since, spent = self._place(), time.monotonic(), time.process_time()
        while self._write.fileno() != -1:
            time.sleep(_LOOK_SECONDS)
            now, here = time.monotonic(), self._place()
            computed = time.process_time() - spent > _BUSY * (now - since) and not self._waits_busily
            if here != place or computed or not here[2].startswith(self._waits_in):
                place, since, spent = here, now, time.process_time()
            elif now - since > WAIT_SECONDS:
                self._end(signum)
                return

    def _place(self) -> tuple[int, int, str]:
        """Where the main thread is: the frame, the bytecode in it, and the file."""
        frame: FrameType | None = sys._current_frames().get(self._main or 0)
        return (id(frame), frame.f_lasti, frame.f_code.co_filename) if frame else (0, 0, "")


def leave(signum: int) -> None:
    """End the process as the signal would have, with the status a shell gives it; nothing of it is run any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signum)
