"""Writing files so that a reader sees the old one or the new one, never half of either.

Everything the suite writes goes through `atomic_path`: a temporary name in the same folder, fsync, rename, fsync of the
folder. Staging in the same folder matters: across file systems a rename is a copy, and a kill in its middle destroys
the old file.
"""

import csv
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from covidseg.system.faults import environment_faults
from covidseg.system.locks import try_lock

TEMPORARY_PREFIX = ".tmp-"
_LEFT_BEHIND_SECONDS = 86_400
MAX_JSON_BYTES = 1 << 28  # a case.json with all its coordinates has a thousandth of it
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
        handle, temporary = _locked_temporary(path.parent, suffix)
        try:
            yield temporary
            fsync(temporary)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            fsync(path.parent)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
            os.close(handle)


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


def read_csv(path: Path | str, texts: Collection[str]) -> list[dict[str, str | float | bool | None]]:
    """Lines of a CSV file, all but the columns `texts` as numbers or truth values, None where a cell is empty."""
    return [
        {name: text if name in texts else _number_or_truth(text) for name, text in row.items()}
        for row in csv_lines(path)
    ]


def csv_lines(path: Path | str) -> list[dict[str, str]]:
    """Lines of a CSV file as they stand there, all of them text."""
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def sha256(path: Path | str) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sweep_temporaries(folder: Path | str) -> int:
    """Remove what killed writers left in `folder`; returns how many files went.

    A writer that is alive holds its file's lock, on whatever machine and in whatever container it runs. On a file
    system without locks only what is a day old is taken to be left behind.
    """
    removed = 0
    for left in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        unknown = (FileNotFoundError, IsADirectoryError, PermissionError, BlockingIOError)  # gone, not ours, or alive
        with suppress(*unknown), open(left, "r+b") as stream:
            if try_lock(stream) or time.time() - os.fstat(stream.fileno()).st_mtime > _LEFT_BEHIND_SECONDS:
                left.unlink()
                removed += 1
    return removed


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked_temporary(folder: Path, suffix: str | None) -> tuple[int, Path]:
    """A new file, and the handle that holds its lock until it is closed: so nobody takes it for a dead writer's."""
    while True:
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=suffix, dir=folder)
        try:
            with suppress(BlockingIOError):  # who sweeps the folder has it: the file is gone in a moment
                try_lock(handle)
                if os.fstat(handle).st_nlink:
                    return handle, Path(name)
        except BaseException:
            os.close(handle)
            os.unlink(name)
            raise
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _number_or_truth(text: str) -> float | bool | None:
    if text in ("True", "False"):
        return text == "True"
    return float(text) if text else None


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = f"'{value}" if value.startswith(_FORMULA_START) else value
    return text.replace("\r\n", "\n").replace("\r", "\n")  # the csv module does not quote a carriage return
