"""Which scans a path stands for: one file, one DICOM folder, or a folder of either."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from covidseg.scans.gate.dicom_elements import looks_like_dicom
from covidseg.scans.gate.names import is_litter, is_slice_name, kind, listing, opened, shown, stem_of, suffix_of
from covidseg.system.errors import BadInput, CovidSegError, EnvironmentFault

ALL_SERIES = "all"
DICOMDIR = "dicomdir"  # lists the files of a medium, and is no scan


@dataclass(frozen=True)
class ScanSource:
    """One scan to read: `id` is its file name without extension, or the name of its DICOM folder.

    Where two scans would have one id, it is made of the path below what was searched. `below`: that path, for tables.
    `series_uid`: which series of the folder is meant, where each is a scan. `refused`: why it cannot be read at all.
    """

    id: str
    path: Path
    below: str = ""
    series_uid: str | None = None
    refused: BadInput | None = None


class ScanSources(list[ScanSource]):
    """Scans in order of their names; `ignored` counts hidden files and files of other kinds that stood among them.

    `passed_over` counts the sub-folders that hold no DICOM slices and were not searched; `deep`: all were.
    """

    ignored: int = 0
    passed_over: int = 0
    deep: bool = False


def find(path: Path | str, recursive: bool, every_series: bool = False) -> ScanSources:
    """The scans at `path`; with `recursive`, or beside a DICOMDIR, at any depth below. `BadInput` when there are none.

    What cannot be opened inside a folder is listed as if it could: reading refuses it then, and the others go on.
    """
    path, found = Path(path), ScanSources()
    if kind(path) == "file":
        if not suffix_of(path):
            raise BadInput(shown(path), "has no extension of a volume", "give the folder that holds the DICOM slices")
        found.append(_source(path))
        return found
    found.deep = recursive or any(entry.name.lower() == DICOMDIR for entry in listing(path))
    sources = _named(list(_search(path, found.deep, found)), path)
    found.extend(_split(sources, recursive) if every_series else sources)
    if not found:
        wrong = f"holds no scan ({found.ignored} other files)"
        deeper = "search deeper with reading.recursive=true"
        remedy = deeper if found.passed_over and not found.deep else "give the folder that holds the scans"
        raise BadInput(shown(path.absolute()), wrong, remedy)
    return found


def _source(path: Path) -> ScanSource:
    return ScanSource(_printable(stem_of(path.absolute())), path, below=_printable(path.name))


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()  # an id can always be printed


def _named(sources: list[ScanSource], root: Path) -> list[ScanSource]:
    """Each with its path below `root`, which makes its id where another has the same; twins in a folder are refused."""
    named = []
    of_id = Counter(source.id.lower() for source in sources)
    for source in sources:
        below = source.path.relative_to(root)
        parts = [*below.parts[:-1], stem_of(below)] if len(below.parts) else []
        unique = _printable("-".join(parts)) if of_id[source.id.lower()] > 1 else source.id
        named.append(replace(source, id=unique, below=_printable(below.as_posix()) if parts else source.below))
    first: dict[str, ScanSource] = {}
    for source in named:
        twin = first.setdefault(source.id.lower(), source)
        if twin is not source:
            wrong = f"has the same id as {shown(twin.path)}, case apart"
            refused = BadInput(shown(source.path), wrong, "rename or remove one")
            first[source.id.lower()] = replace(twin, refused=refused)
    return list(first.values())


def _split(sources: list[ScanSource], recursive: bool) -> Iterator[ScanSource]:
    """Each series of a DICOM folder as a scan, the thinnest first."""
    from covidseg.scans.gate.dicom import series_in  # SimpleITK comes with it, which training does without

    for source in sources:
        try:
            folder = kind(source.path) == "folder"
            series = series_in(source.path, recursive) if folder else []
        except CovidSegError:  # reading says what is wrong
            series = []
        if len(series) < 2:
            yield source
        for number, uid in enumerate(series if len(series) > 1 else (), start=1):
            yield replace(source, id=f"{source.id}-series{number}", series_uid=uid)


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
    if path.name.lower() == DICOMDIR:
        return False
    try:
        with opened(path) as stream:
            return looks_like_dicom(stream.read(132))
    except CovidSegError:
        return False
