"""What MetaImage and NRRD share: a text header, and voxels behind it or in a file that it names."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from covidseg.scans.gate.names import opened, shown
from covidseg.system.errors import BadInput

T = TypeVar("T")

_MAX_LINE = 4096
_MAX_LINES = 1000


class Fields:
    """Header fields by name (case does not count); every accessor names the file and the field that is wrong."""

    def __init__(self, what: str):
        self.what = what
        self._fields: dict[str, str] = {}
        self.keys: dict[str, str] = {}  # what a program adds for itself, in NRRD `key:=value`

    def add(self, name: str, value: str) -> None:
        """Keep a field; one that comes twice is refused, because readers differ on which one counts."""
        if name.lower() in self._fields:
            raise BadInput(self.what, f"its header gives {name[:40]!r} twice", "remove one")
        self._fields[name.lower()] = value

    def text(self, *names: str, default: str | None = None) -> str:
        """The value of the first of `names` that is there."""
        value = next((self._fields[name.lower()] for name in names if name.lower() in self._fields), default)
        if value is None:
            raise BadInput(self.what, f"its header lacks {names[0]!r}", "convert it from the source again")
        return value

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._fields

    def numbers(self, *names: str, default: str | None = None) -> list[float]:
        """A blank-separated list of numbers."""
        text = self.text(*names, default=default)
        try:
            if "_" in text:  # a digit separator to Python alone
                raise ValueError
            return [float(part) for part in text.split()]
        except ValueError:
            raise BadInput(self.what, f"{names[0]} = {text[:60]!r} is no list of numbers", "mend the header") from None

    def sizes(self, name: str) -> list[int]:
        """A list of whole numbers."""
        values = self.numbers(name)
        if not all(value.is_integer() for value in values):
            raise BadInput(self.what, f"{name} = {self.text(name)[:60]!r} is no list of sizes", "mend the header")
        return [int(value) for value in values]

    def choice(self, name: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """The meaning of a field whose values are words."""
        text = self.text(name, default=default)
        if text.lower() not in choices:
            wanted = ", ".join(sorted(choices))
            raise BadInput(self.what, f"{name} = {text[:60]!r} is not supported", f"convert it; read are: {wanted}")
        return choices[text.lower()]


def lines(stream: BinaryIO, what: str) -> Iterator[str]:
    """Lines without their ends up to the end of the file; the reader stops where the header does. Length is bounded."""
    for _ in range(_MAX_LINES):
        line = stream.readline(_MAX_LINE)
        if not line:
            return
        if not line.endswith(b"\n"):
            raise truncated(what)
        yield line.decode("utf-8", "replace").rstrip("\r\n")
    raise BadInput(what, f"its text header runs past {_MAX_LINES} lines", "not a scan")


def truncated(what: str) -> BadInput:
    """The error for a file that ends before its header does."""
    return BadInput(what, "truncated: its text header has no end", "copy or download it again")


@contextmanager
def voxel_file(header: Path, stream: BinaryIO, data_file: str | None) -> Iterator[BinaryIO]:
    """Where the voxels are: in `stream` behind the header, or in a file beside it, never anywhere else."""
    if data_file is None:
        yield stream
        return
    with opened(beside(header, data_file)) as voxels:
        yield voxels


def beside(header: Path, data_file: str) -> Path:
    """The file that a header names, `./` before it or not; `BadInput` where it is not one in the same folder."""
    name = re.sub(r"^(\./+)+", "", data_file)
    if not re.fullmatch(r"[^/\\\0%]+", name) or name in (".", ".."):
        wrong = f"its header looks for voxels elsewhere ({shown(data_file)[:80]})"
        raise BadInput(shown(header), wrong, "they must be one file in the same folder")
    voxels = header.parent / name
    if voxels.is_symlink() and voxels.resolve().parent != header.resolve().parent:  # a tree of links may link both
        wrong = f"its voxels ({shown(name)[:80]}) are a link to another folder than the header's"
        raise BadInput(shown(header), wrong, "put the file itself beside the header")
    return voxels
