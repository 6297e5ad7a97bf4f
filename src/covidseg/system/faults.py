"""What the machine refuses, as one line with a remedy: disks and their rights, memory."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from covidseg.system.errors import EnvironmentFault

DISK_FAULTS = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "your quota is used up; choose another folder",
    errno.EFBIG: "the file is larger than the file system or ulimit -f allows; choose another folder",
    errno.EIO: "the disk fails: look at the machine's log, and choose another folder",
    errno.ESTALE: "the network file system lost the folder; the same command goes on when it is back",
    errno.ETIMEDOUT: "the network file system does not answer; the same command goes on when it is back",
    errno.ENOLCK: "the file system has no locks; choose a folder on another one",
    errno.ENOSYS: "the file system has no locks; choose a folder on another one",
    errno.EOPNOTSUPP: "the file system has no locks; choose a folder on another one",
    errno.EMFILE: "too many open files: raise ulimit -n",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.ENOTDIR: "a file stands where a folder is needed",
}
_NO_MEMORY = ("allocate memory", "out of memory")  # how torch and ITK word it


@contextmanager
def environment_faults(path: Path) -> Iterator[None]:
    """Turn what a disk or its rights refuse while `path` is written into an `EnvironmentFault`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno is None and "requested and" in str(error):  # numpy's, of a write that was cut short
            raise EnvironmentFault(path.name, "cannot be written whole", DISK_FAULTS[errno.ENOSPC]) from error
        if error.errno not in DISK_FAULTS:
            raise
        wrong = f"cannot be written ({os.strerror(error.errno)})"
        raise EnvironmentFault(path.name, wrong, DISK_FAULTS[error.errno]) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the device or of the machine."""
    worded = isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _NO_MEMORY)
    return worded or isinstance(error, MemoryError)
