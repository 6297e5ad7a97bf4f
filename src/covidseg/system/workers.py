"""One function on many items in worker processes, where the death of a worker costs its item and nothing else."""

import ctypes
import logging
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from covidseg.system.errors import CovidSegError, EnvironmentFault

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_MOST_WORKERS = 16
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
_SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}


def default_workers(items: int) -> int:
    """One process per processor this process may use, within reason; 0 (no processes) for a single item."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if items <= 1 else min(available, items, _MOST_WORKERS)


def map_unordered(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int, name: Callable[[Any], str]
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, result) as they come. A `CovidSegError` is given as the result; any other exception is raised.

    `workers=0` runs in this process. A worker gets one item at a time, so a killed one (out of memory) is known by its
    item, and another takes its place. `function` must be importable by name. Fresh interpreters, not forks: those
    would inherit half of the thread pools of SimpleITK and torch, and not `multiprocessing`'s, which would run the
    calling script again. No worker outlives this process or the iterator.
    """
    if workers == 0:
        for item in items:
            yield item, _attempt(function, item, name(item))
        return
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    stop = threading.Event()
    threads = [
        threading.Thread(target=_feed_worker, args=(function, name, waiting, done, stop), daemon=True)
        for _ in range(min(workers, len(items)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            item, result = done.get()
            if isinstance(result, BaseException) and not isinstance(result, CovidSegError):
                raise result
            yield item, result
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _feed_worker(
    function: Callable[[Any], Any],
    name: Callable[[Any], str],
    waiting: queue.SimpleQueue,
    done: queue.SimpleQueue,
    stop: threading.Event,
) -> None:
    """One thread of the parent: keeps one worker process busy until nothing waits."""
    worker: _Worker | None = None
    try:
        while not stop.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                worker = worker or _Worker()
                worker.connection.send((function, item, name(item)))
                while not worker.connection.poll(0.1):
                    if stop.is_set():
                        return
                result = worker.connection.recv()
            except (EOFError, ConnectionError):
                if worker:
                    worker.end()
                worker = None
                remedy = "data.workers=1 needs the least memory; what is done is kept"
                result = EnvironmentFault(name(item), "its process was killed (out of memory?)", remedy)
            except BaseException as error:
                result = error
            done.put((item, result))
    finally:
        if worker is not None:
            worker.end()


class _Worker:
    """A Python process that runs what it is sent and sends back what came of it."""

    def __init__(self):
        self.connection, theirs = multiprocessing.Pipe()
        path = os.pathsep.join([_PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])])
        program = "import sys; from covidseg.system.workers import _serve; _serve(*map(int, sys.argv[1:]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, **_SINGLE_THREAD, "PYTHONPATH": path},
        )
        theirs.close()

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def _serve(descriptor: int, parent: int) -> None:
    """The worker's side."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with suppress(OSError, AttributeError):  # Linux only; elsewhere an orphan ends at the next item
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    connection = Connection(descriptor)
    with suppress(EOFError):
        while True:
            function, item, name = connection.recv()
            try:
                connection.send(_attempt(function, item, name))
            except Exception as error:
                connection.send(error)


def _attempt(function: Callable[[Any], Any], item: Any, name: str) -> Any:
    try:
        return function(item)
    except CovidSegError as error:
        return error
    except MemoryError:
        return EnvironmentFault(name, "needs more memory than there is", "data.workers=1, or a larger machine")
    except Exception as error:
        error.add_note(f"while working on {name}")
        raise
