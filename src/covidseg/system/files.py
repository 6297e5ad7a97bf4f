"""Writing files so that a reader sees the old one or the new one, never half of either.

Everything the suite writes goes through `atomic_path`: a temporary name in the same folder, fsync, rename, fsync of the
folder. Staging in the same folder matters: across file systems a rename is a copy, and a kill in its middle destroys
the old file.
"""

import csv
import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from covidseg.system.errors import EnvironmentFault

TEMPORARY_PREFIX = ".tmp-"
MAX_JSON_BYTES = 1 << 28  # a case.json with all its coordinates has a thousandth of it
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
_FORMULA_START = ("=", "+", "-", "@", "\t", "\r")


@contextmanager
def atomic_path(path: Path | str, suffix: str | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it takes `path`'s place.

    `suffix` keeps an extension that the writer looks at (".nii.gz"). Raises `EnvironmentFault` when the disk is full or
    read-only; the previous file stands then as before, and the temporary one is gone.
    """
    path = Path(path)
    with environment_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY_PREFIX}{os.getpid()}-", suffix=suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            fsync(temporary)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


def write_bytes(path: Path | str, content: bytes) -> None:
    """Replace `path` by `content`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Replace `path` by `text` (UTF-8), whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write strict JSON (no NaN: an undefined number is null), indented, keys in the given order."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def read_json(path: Path | str) -> Any:
    """The content of a JSON file of at most `MAX_JSON_BYTES`. Raises `OSError`, or `ValueError` for anything else."""
    with open(path, "rb") as stream:
        content = stream.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"more than {MAX_JSON_BYTES >> 20} MiB of JSON")
    return parse_json(content)


def parse_json(content: bytes) -> Any:
    """Strict JSON: NaN and infinity are none. Raises `ValueError`, also for what is nested without end."""
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def write_csv(path: Path | str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write `rows` under a header of `columns`; text that a spreadsheet would run gets a leading quote mark.

    A carriage return in a text becomes a line feed.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _inert(value) for key, value in row.items()})
    write_text(path, buffer.getvalue())


def sha256(path: Path | str) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sweep_temporaries(folder: Path | str) -> int:
    """Remove what a killed writer left in `folder`, writers that are alive excepted; returns how many files went."""
    removed = 0
    for left in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        owner = left.name.removeprefix(TEMPORARY_PREFIX).split("-")[0]
        if not (owner.isdigit() and Path(f"/proc/{owner}").exists()):
            left.unlink(missing_ok=True)
            removed += 1
    return removed


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


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = f"'{value}" if value.startswith(_FORMULA_START) else value
    return text.replace("\r\n", "\n").replace("\r", "\n")  # the csv module does not quote a carriage return
