"""Which scans a path stands for: one file, one DICOM folder, or a folder of either."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from covidseg.scans.gate.names import is_litter, is_slice_name, kind, listing, opened, shown, stem_of, suffix_of
from covidseg.system.errors import BadInput, CovidSegError, EnvironmentFault

_INDEX = "dicomdir"  # lists the files of a medium, and is no scan


@dataclass(frozen=True)
class ScanSource:
    """One scan to read: `id` is its file name without extension, or the name of its DICOM folder."""

    id: str
    path: Path


class ScanSources(list[ScanSource]):
    """Scans in order of their names; `ignored` counts hidden files and files of other kinds that stood among them.

    `passed_over` counts the sub-folders that hold no DICOM slices and were not searched.
    """

    ignored: int = 0
    passed_over: int = 0


def find(path: Path | str, recursive: bool) -> ScanSources:
    """The scans at `path`; with `recursive`, at any depth below. `BadInput` when there are none or two of a name.

    What cannot be opened inside a folder is listed as if it could: reading refuses it then, and the others go on.
    """
    path, found = Path(path), ScanSources()
    if kind(path) == "file":
        if not suffix_of(path):
            raise BadInput(shown(path), "has no extension of a volume", "give the folder that holds the DICOM slices")
        found.append(_source(path))
        return found
    found.extend(_search(path, recursive, found))
    if not found:
        wrong = f"holds no scan ({found.ignored} other files)"
        deeper = "search deeper with reading.recursive=true"
        remedy = deeper if found.passed_over and not recursive else "give the folder that holds the scans"
        raise BadInput(shown(path.absolute()), wrong, remedy)
    first: dict[str, ScanSource] = {}
    for source in found:
        twin = first.setdefault(source.id.lower(), source)
        if twin is not source:
            wrong = f"has the same id as {shown(twin.path)}, case apart"
            raise BadInput(shown(source.path), wrong, "rename or remove one")
    return found


def _source(path: Path) -> ScanSource:
    name = stem_of(path.absolute())
    return ScanSource(name.encode("utf-8", "backslashreplace").decode(), path)  # an id can always be printed


def _search(folder: Path, recursive: bool, found: ScanSources, depth: int = 0) -> Iterator[ScanSource]:
    try:
        paths = listing(folder)
    except EnvironmentFault:
        if depth == 0:
            raise
        yield _source(folder)
        return
    visible = [path for path in paths if not is_litter(path.name)]
    folders = [path for path in visible if os.path.isdir(path)]  # False, too, where that may not be looked up
    volumes = [path for path in visible if suffix_of(path) and path not in folders]
    others = [path for path in visible if path not in folders and path not in volumes]
    if any(_is_slice(path) for path in others):
        if volumes and depth == 0:
            wrong = f"holds DICOM slices beside {shown(volumes[0])}"
            raise BadInput(shown(folder.absolute()), wrong, "give them separate folders")
        yield _source(folder)
    elif depth == 0 or recursive:
        found.ignored += len(paths) - len(visible) + len(others)
        yield from map(_source, volumes)
        for path in folders:
            if recursive and path.is_symlink():  # a link may lead round in a circle
                found.passed_over += 1
            else:
                yield from _search(path, recursive, found, depth + 1)
    else:
        found.passed_over += 1


def _is_slice(path: Path) -> bool:
    """By extension or by content, so that a series with a damaged file is still seen as one."""
    if is_slice_name(path):
        return True
    if path.name.lower() == _INDEX:
        return False
    try:
        with opened(path) as stream:
            return stream.read(132)[128:] == b"DICM"
    except CovidSegError:
        return False
