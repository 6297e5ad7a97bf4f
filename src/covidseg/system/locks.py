"""Locks between processes. The kernel drops one with the process that holds it, however that ends: none is ever stale.

A file system that has no locks (ENOLCK: NFS without its lock daemon; ENOSYS, EOPNOTSUPP: Lustre mounted without flock)
is an `EnvironmentFault`: two processes that write one folder would destroy it.
"""

import errno
import fcntl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from covidseg.system.faults import environment_faults

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path`, made if need be, for the block or the life of the process.

    Where another process holds it: raises `BlockingIOError`, or, with `waiting`, calls that once and waits. Raises
    `EnvironmentFault` where the file cannot be made or locked.
    """
    with ExitStack() as held:
        with environment_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = held.enter_context(open(path, "a"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    raise
                waiting()
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock file. Raises `EnvironmentFault` where that cannot be told."""
    try:
        with environment_faults(path), open(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def try_lock(stream: IO | int) -> bool:
    """Lock an open file until it is closed; whether its file system has locks. Raises `BlockingIOError` where another
    process holds it.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True
