"""What lies at a path, before anything tries to decode it."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from covidseg.system.errors import BadInput, EnvironmentFault

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
_CASE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}

_MAGIC = (  # (offset, bytes, what such a file is)
    (0, b"\x1f\x8b", "gzip"),
    (344, b"n+1\0", "NIfTI"),
    (344, b"ni1\0", "a NIfTI header without its voxels (.hdr/.img pair)"),
    (4, b"n+2\0", "NIfTI-2"),
    (4, b"ni2\0", "NIfTI-2"),
    (0, b"NRRD000", "NRRD"),
    (128, b"DICM", "DICOM"),
    (0, b"version https://git-lfs", "a git-lfs pointer"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x89HDF", "an HDF5 file"),
)
_REMEDY = {
    "a git-lfs pointer": "run `git lfs pull`",
    "a web page": "download it again: the server sent an error page instead",
    "a zip archive": "unpack it first",
    "NIfTI-2": "convert it to NIfTI-1 (.nii.gz)",
    "a NIfTI header without its voxels (.hdr/.img pair)": "convert the pair to one .nii.gz",
    "DICOM": "give the folder that holds the whole series",
    "gzip": "rename it to .nii.gz if it is NIfTI",
    "NIfTI": "rename it to .nii",
    "NRRD": "rename it to .nrrd",
    "MetaImage": "rename it to .mha",
}


def shown(path: Path | str) -> str:
    """The last part of a path as one printable line: control characters and bytes that are not UTF-8 are escaped."""
    return printable(os.path.basename(os.path.normpath(os.fspath(path))))


def printable(text: str) -> str:
    """`text` with control characters and bytes that are not UTF-8 escaped: it can be printed and written anywhere."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def suffix_of(path: Path | str) -> str:
    """The volume extension of a name, in lower case; empty when it has none of them."""
    lower = os.path.basename(os.fspath(path)).lower()
    return next((suffix for suffix in VOLUME_SUFFIXES if lower.endswith(suffix)), "")


def stem_of(path: Path | str) -> str:
    """The name without its volume extension."""
    name = os.path.basename(os.fspath(path))
    suffix = suffix_of(name)
    return name[: -len(suffix)] if suffix else name


def is_slice_name(path: Path) -> bool:
    """Whether a file is called as DICOM slices are."""
    return path.name.lower().endswith((".dcm", ".ima"))


def is_segmentation(path: Path | str) -> bool:
    """Whether a file is called as 3D Slicer calls a segmentation: <name>.seg.nrrd."""
    return os.fspath(path).lower().endswith((".seg.nrrd", ".seg.nhdr"))


def is_litter(name: str) -> bool:
    """Hidden files (`._case.nii.gz`, `.DS_Store`) and what file managers leave behind."""
    return name.startswith(".") or name.lower() in _LITTER


def require_case_id(name: str) -> str:
    """`name`, when it may become part of a path and of a table; `BadInput` otherwise."""
    if not _CASE_ID.fullmatch(name) or set(name) == {"."}:
        raise BadInput(shown(name) or "(empty)", "is no case id", "use 1 to 128 letters, digits, `.`, `_` or `-`")
    return name


def require_text(path: Path | str) -> Path:
    """`path`, when its bytes are UTF-8: SimpleITK ends the whole process on any other, past any `except`."""
    try:
        os.path.abspath(path).encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput(
            shown(path), "the path holds bytes that are not UTF-8", "rename the file or its folder"
        ) from None
    if "\0" in os.fspath(path):
        raise BadInput(shown(path), "the path holds a NUL character", "rename it")
    return Path(path)


def kind(path: Path | str) -> str:
    """What is at the path, "file" or "folder"; all else is refused without being opened, for a FIFO would hang."""
    path = require_text(path)
    with read_faults(path):
        mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    raise BadInput(shown(path), "is a pipe, socket or device", "give a file")


def listing(folder: Path | str) -> list[Path]:
    """What a folder holds, by name."""
    with read_faults(folder):
        return [Path(folder) / name for name in sorted(os.listdir(folder))]


@contextmanager
def opened(path: Path | str) -> Iterator[BinaryIO]:
    """Open a regular, non-empty file for reading; faults of the disk while it is open are `EnvironmentFault`."""
    if kind(path) != "file":
        raise BadInput(shown(path), "is a folder", "give a file")
    with read_faults(path), open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            raise BadInput(shown(path), "is empty (0 bytes)", "copy or download it again")
        yield stream


def require_kind(path: Path | str, head: bytes, wanted: str) -> None:
    """Refuse a file whose first bytes are not those of a `wanted` file, saying what it looks like instead."""
    found = _sniff(head)
    if found != wanted:
        looks = f"; looks like {found}" if found else ""
        raise BadInput(
            shown(path), f"is not {wanted}{looks}", _REMEDY.get(found, "give a scan of the kind its name says")
        )


def refuse_sibling(path: Path | str) -> None:
    """Refuse `x.nii.gz` beside `x.nii`: ITK takes the header of one and the voxels of the other."""
    name = os.path.basename(path)
    other = {".nii.gz": name[:-3], ".nii": f"{name}.gz"}.get(suffix_of(name))
    if other and os.path.lexists(os.path.join(os.path.dirname(path), other)):
        raise BadInput(shown(path), f"stands beside {shown(other)}, and readers mix the two up", "remove or rename one")


def _sniff(head: bytes) -> str:
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page"
    if text.startswith((b"objecttype", b"ndims", b"comment")):
        return "MetaImage"
    printable = sum(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    return "text" if head and printable == len(head) else ""


@contextmanager
def read_faults(path: Path | str) -> Iterator[None]:
    """Turn an `OSError` about `path` into the `BadInput` or `EnvironmentFault` that it is."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise EnvironmentFault(shown(path), "permission denied", "ask its owner for read access") from error
        told = {
            errno.ENOENT: ("is a link to nothing", "mend the link")
            if os.path.islink(path)
            else ("does not exist", "check the name"),
            errno.ELOOP: ("is a link that leads back to itself", "mend the link"),
            errno.ENOTDIR: ("does not exist: a file stands where the path needs a folder", "check the path"),
            errno.ENAMETOOLONG: ("the name is too long for the file system", "use a shorter one"),
        }.get(error.errno or 0)
        if told is None:
            raise EnvironmentFault(
                shown(path), f"cannot be read ({os.strerror(error.errno or 0)})", "check the disk"
            ) from error
        raise BadInput(shown(path), *told) from error
