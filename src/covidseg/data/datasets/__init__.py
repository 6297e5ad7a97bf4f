"""One converter per public data set: which files are a case, whose it is, what its labels mean. No voxel is read here.

A converter is a class that YAML names (`conf/data/<name>.yaml`, key `source`); its `listing()` gives the cases.
"""

import csv
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from covidseg.data.store import LABELS
from covidseg.scans.gate.assume import Assume
from covidseg.scans.gate.detached import voxel_path
from covidseg.scans.gate.finding import DICOMDIR, find
from covidseg.scans.gate.names import kind, listing, opened, printable, shown, stem_of, suffix_of
from covidseg.system.errors import BadInput

ASSUME = "data.source.assume"  # where a user vouches for what files do not say
_SEGMENTATION = ".seg"  # 3D Slicer calls a mask <name>.seg.nrrd
_DICOM_FILE = ".dcm"  # a DICOM SEG or RTSTRUCT; a scan is a folder of them
_SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_MAX_TABLE = 1 << 26  # bytes of cases.csv
_RESERVED = ("dataset.json", "splits.json", "failures.csv")  # names a prepared folder uses itself


@dataclass(frozen=True)
class Mask:
    """A mask file and what is in it: file value, or name of a segment -> stored label. Others are refused."""

    path: Path
    labels: Mapping[int | str, int]
    mapped_by: str = ""  # the override that gives a further VALUE its meaning, if there is one


@dataclass(frozen=True)
class Source:
    """The files of one case, before anything is read."""

    id: str
    image: Path
    masks: tuple[Mask, ...]
    patient: str = ""  # "" = nobody else's: the case is its own patient
    site: str = ""
    declared: str = ""  # the side of the split its owner put it on, or ""
    assume: Mapping[str, Any] | None = None  # handed to the reader: what stored values mean where they are not HU
    option: str = ""  # where `assume` stands in the configuration, if there
    series: str | None = None  # which CT series of a DICOM folder: a rule, or a UID
    notes: tuple[str, ...] = ()

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """Image and masks, with the voxel files that their headers name."""
        return tuple(part for path in (self.image, *(mask.path for mask in self.masks)) for part in parts(path))

    @property
    def annotated(self) -> tuple[str, ...]:
        """Which of "lung", "lesion" the masks can tell."""
        values = {value for mask in self.masks for value in mask.labels.values()}
        return tuple(name for name, value in LABELS.items() if value in values)


@dataclass
class Listing:
    """What a converter found: cases, and entries it refuses with the reason, (name, error)."""

    cases: list[Source] = field(default_factory=list)
    refused: list[tuple[str, BadInput]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sites: frozenset[str] = frozenset()  # sites that are meant, should no case be from them

    def refuse(self, name: str, wrong: str, remedy: str) -> None:
        name = printable(name)
        self.refused.append((name, BadInput(f"case {name}", printable(wrong), remedy)))

    def note(self, text: str) -> None:
        self.notes.append(printable(text))


def existing_folder(root: object, option: str, inside: str = "") -> Path:
    """`root` as a path, or the folder `inside` it; `BadInput` naming the option where it is not a folder.

    `EnvironmentFault` where it may not be looked into.
    """
    if root is None:
        raise BadInput(option, "has no value", f"give the folder of the data set: {option}=...")
    path = Path(str(root)).expanduser()
    what = f"{option}={shown(path.absolute())}"
    if not _is_folder(path):
        raise BadInput(
            what,
            "there is no such folder",
            "correct the path, or fetch a public data set: prepare.py data=... download=true",
        )
    if inside and not _is_folder(path / inside):
        raise BadInput(what, f"holds no folder {inside}/", "give the folder around it; conf/data says what lies where")
    return path / inside


def _is_folder(path: Path) -> bool:
    try:
        return kind(path) == "folder"
    except BadInput:
        return False


def parts(path: Path) -> tuple[Path, ...]:
    """The files of one volume: itself, and the one with its voxels where that is another (.mhd, .nhdr)."""
    voxels = voxel_path(path)
    return (path,) if voxels is None else (path, voxels)


def composed(name: str) -> str:
    """A name in Unicode's composed form."""
    return unicodedata.normalize("NFC", name)


def scan_name(path: Path) -> str:
    """File name without its scan extension; a folder's (a DICOM series) name as it is.

    In Unicode's composed form, whichever the file system keeps: an image from a Mac meets its mask from a PC.
    """
    name = composed(path.name)
    if path.is_dir():
        return name
    stem = stem_of(name).removesuffix(_DICOM_FILE)
    return stem[: -len(_SEGMENTATION)] if stem.lower().endswith(_SEGMENTATION) else stem


def is_mask_name(path: Path) -> bool:
    """Whether a file is called as masks are: a volume, or a single DICOM object (SEG, RTSTRUCT)."""
    return bool(suffix_of(path)) or path.name.endswith(_DICOM_FILE)


def entries(folder: Path, masks: bool = False) -> tuple[dict[str, list[Path]], int]:
    """Scans in a folder by name (sub-folders: DICOM series), and how many hidden or foreign files were passed over.

    `masks`: single DICOM files, too, which hold a segmentation or a structure set.
    """
    found: dict[str, list[Path]] = {}
    others: set[Path] = set()
    for path in listing(folder) if _is_folder(folder) else ():
        known = path.is_dir() or suffix_of(path) or (masks and is_mask_name(path))
        if path.name.startswith(".") or not known:
            others.add(path)
        else:
            found.setdefault(scan_name(path), []).append(path)
    if not others:
        return found, 0
    paths = [path for several in found.values() for path in several]
    voxels = {part for path in paths for part in parts(path)}
    return found, len(others - voxels)


def exported(folder: Path, listed: Listing) -> tuple[dict[str, list[Path]], int] | None:
    """As `entries`, of a PACS export: the series below a DICOMDIR by the ids that predict.py gives them.

    What predict.py would refuse is refused in `listed`. None where there is no DICOMDIR.
    """
    if not any(path.name.lower() == DICOMDIR for path in listing(folder)):
        return None
    found = find(folder, recursive=True)
    listed.refused += [(source.id, source.refused) for source in found if source.refused]
    return {composed(source.id): [source.path] for source in found if not source.refused}, found.ignored


def case_id(name: str) -> str:
    """`name` where it can be a folder's name everywhere; otherwise its safe characters and a short hash of it."""
    if _SAFE_ID.fullmatch(name) and name not in _RESERVED:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:100].strip("_") + f"-{digest}"


def label_map(names: Mapping[Any, str], option: str) -> dict[int | str, int]:
    """{file value, or name of a segment: "lung" | "lesion" | "background"} of the configuration -> stored labels."""
    meanings = {"background": 0, **LABELS}
    try:
        return {_value(value): meanings[str(name)] for value, name in names.items()}
    except (KeyError, ValueError):
        raise BadInput(option, f"{dict(names)} is not value: lung|lesion", "for example {1: lung, 2: lesion}") from None


def _value(key: Any) -> int | str:
    """A number as YAML or a command line gives it, or a segment's name."""
    try:
        return int(key)
    except (TypeError, ValueError):
        return str(key)


def assumed(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of `assume` that have a value; `BadInput` for one that means nothing."""
    Assume.of(given, ASSUME)
    return {name: value for name, value in (given or {}).items() if value is not None}


def read_table(path: Path, columns: Iterable[str]) -> dict[str, dict[str, str]]:
    """cases.csv as {case: row}, empty where there is none.

    `BadInput` where it is no UTF-8 table, a column is unknown or double, a line has no case or too many fields, or a
    case occurs twice: who is whose patient is too much to guess. `EnvironmentFault` where it may not be read.
    """
    if not os.path.lexists(path):
        return {}
    with opened(path) as stream:
        content = stream.read(_MAX_TABLE)
    try:
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip() for name in next(lines, [])]
        _require_columns(path.name, header, columns)
        rows: dict[str, dict[str, str]] = {}
        for fields in lines:
            values = [field.strip() for field in fields]
            if not any(values):  # spreadsheets leave such lines behind
                continue
            line = f"line {lines.line_num}"
            if any(values[len(header) :]):
                wrong = f"{line} has {len(values)} fields, its header {len(header)}"
                raise BadInput(path.name, wrong, "put text with a comma in double quotes")
            row = dict.fromkeys(header, "") | dict(zip(header, values, strict=False))
            if not row["case"]:
                raise BadInput(path.name, f"{line} names no case", "write the name of its image, or remove the line")
            if row["case"] in rows:
                raise BadInput(path.name, f"case {row['case']} occurs twice", "keep one line for each case")
            rows[row["case"]] = row
    except UnicodeDecodeError:
        raise BadInput(path.name, "is not UTF-8 text", "save it as CSV UTF-8") from None
    except csv.Error as error:
        raise BadInput(path.name, f"is no table of comma-separated values ({error})", "save it as CSV UTF-8") from error
    return rows


def _require_columns(what: str, header: Sequence[str], columns: Iterable[str]) -> None:
    unknown = sorted(set(header) - set(columns))
    twice = [name for name in header if header.count(name) > 1]
    if "case" in header and not unknown and not twice:
        return
    wrong = f"has unknown columns {', '.join(unknown)}" if unknown else "has no column `case`"
    wrong = f"has two columns {twice[0]}" if twice and not unknown else wrong
    raise BadInput(what, wrong, f"its header is a choice of {','.join(columns)}")
