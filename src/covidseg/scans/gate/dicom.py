"""A folder of DICOM files -> one CT volume, when the files are exactly the slices of one series.

Series readers return the first series they find, drop what they cannot read, close gaps by stretching the spacing and
ignore gantry tilt. Here every file is accounted for: a slice of the series, ignored for a stated reason, or an error.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from covidseg.scans.gate.assume import Assume
from covidseg.scans.gate.dicom_file import CT_IMAGE, ENHANCED_CT, DicomFile, hounsfield, is_lossy, parse
from covidseg.scans.gate.dicom_frames import frames
from covidseg.scans.gate.dicom_stack import arrange, require_ct_slice, thickness_of
from covidseg.scans.gate.grids import Volume
from covidseg.scans.gate.names import is_litter, is_slice_name, kind, listing, shown, suffix_of
from covidseg.scans.gate.tilt import straightened
from covidseg.system.errors import BadInput

_OTHER_CLASSES = {
    "1.2.840.10008.1.3.10": "DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.4": "MR image",
    "1.2.840.10008.5.1.4.1.1.7": "secondary capture",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.88.67": "dose report",
    "1.2.840.10008.5.1.4.1.1.128": "PET image",
    "1.2.840.10008.5.1.4.1.1.481.3": "RT structure set",
}
_LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW"}
_FOREIGN = (
    ".txt", ".md", ".json", ".xml", ".csv", ".html", ".htm", ".pdf", ".jpg", ".jpeg", ".png", ".log", ".ini", ".inf",
)  # fmt: skip


def read(folder: Path, assume: Assume, series: str | None, recursive: bool) -> Volume:
    """The CT series in `folder`; `BadInput` names the file or the gap that keeps it from being one volume.

    `series` chooses among several: a rule of `RULES`, or a UID; `recursive` searches sub-folders too.
    """
    what = shown(folder)
    files, ignored = _collect(folder, recursive)
    slices, notes = _choose(what, files, ignored, series)
    for file in slices:
        require_ct_slice(file)
    places, geometry, shift_mm, seen = arrange(what, slices, assume)
    notes += seen
    stored = np.empty(geometry.shape_zyx, np.float32)
    dropped = 0
    for index, (first, *copies) in enumerate(places):
        stored[index] = hounsfield(first)
        for copy in copies:
            if not np.array_equal(stored[index], hounsfield(copy)):
                wrong = f"{first.what} and {copy.what} show different images of one place"
                raise BadInput(what, wrong, "separate the phases")
            dropped += 1
    notes += [f"{_counted(count, name)} ignored" for name, count in sorted(ignored.items())]
    notes += [f"{dropped} identical copies of slices dropped"] if dropped else []
    if lossy := sum(map(is_lossy, slices)):
        notes.append(f"{lossy} of {len(slices)} slices went through lossy compression: their HU are not the scanner's")
    uid = slices[0].text("SeriesInstanceUID")
    volume = Volume(
        stored,
        geometry,
        notes=notes,
        thickness_mm=thickness_of(slices[0]),
        series_uid=uid,
        slices=tuple((first.path, first.frame) for first, *_ in places),
    )
    return volume if shift_mm is None else straightened(volume, shift_mm)


def series_in(folder: Path, recursive: bool) -> list[str]:
    """The UIDs of the CT series in a folder, the one that `thinnest` chooses first."""
    files, _ = _collect(folder, recursive)
    series = _by_uid(files)
    return sorted(series, key=lambda uid: _thinness(series[uid]))


def _collect(folder: Path, recursive: bool) -> tuple[list[DicomFile], Counter]:
    """(CT images, what else was there). A file that should be DICOM and is not cannot be passed over in silence."""
    files: list[DicomFile] = []
    ignored: Counter[str] = Counter()
    strange: list[Path] = []
    for path in _walk(folder, recursive, ignored):
        if path.name.lower().endswith(_FOREIGN):
            ignored["other file"] += 1
            continue
        file = parse(path) if path.stat().st_size else None
        if file is None:
            strange.append(path)
            continue
        sop_class = file.text("SOPClassUID", default=file.text("MediaStorageSOPClassUID", default="") or None)
        if sop_class not in (CT_IMAGE, ENHANCED_CT):
            ignored[_OTHER_CLASSES.get(sop_class, "other DICOM object")] += 1
        else:
            for one in frames(file):
                if _LOCALIZERS & set(one.text("ImageType", default="").upper().split("\\")):
                    ignored["localizer image"] += 1
                else:
                    files.append(one)
    slices = {_pattern(file.path) for file in files}
    for path in strange:
        if is_slice_name(path) or _pattern(path) in slices:
            wrong = "is empty (0 bytes)" if not path.stat().st_size else "unreadable: it is no DICOM file"
            raise BadInput(shown(path), f"{wrong}, and is called like a slice", "copy it again, or move it elsewhere")
        if suffix_of(path):
            raise BadInput(shown(path), "is a volume among DICOM slices", "give them separate folders")
    ignored["file(s) that are no DICOM"] += len(strange)
    return files, +ignored


def _pattern(path: Path) -> tuple[Path, str]:
    """What the slices of a series have in common: their folder, and their names but for the numbers in them."""
    return path.parent, re.sub(r"[\d.]+", "#", re.sub(r"\.(dcm|ima)$", "", path.name.lower()))


def _walk(folder: Path, recursive: bool, ignored: Counter) -> Iterator[Path]:
    for path in listing(folder):
        if is_litter(path.name):
            ignored["hidden file"] += 1
        elif kind(path) == "file":
            yield path
        elif recursive and not path.is_symlink():  # a link may lead round in a circle
            yield from _walk(path, recursive, ignored)
        else:
            ignored["sub-folder"] += 1


def _by_uid(files: list[DicomFile]) -> dict[str, list[DicomFile]]:
    series: dict[str, list[DicomFile]] = {}
    for file in files:
        series.setdefault(file.text("SeriesInstanceUID"), []).append(file)
    return series


def _choose(
    what: str, files: list[DicomFile], ignored: Counter, wanted: str | None
) -> tuple[list[DicomFile], list[str]]:
    """(slices of one series, a note where there was a choice)."""
    series = _by_uid(files)
    if not series:
        found = ", ".join(_counted(count, name) for name, count in sorted(ignored.items())) or "nothing"
        deeper = ignored["sub-folder"]
        remedy = "give the folder of a CT series"
        remedy += " (predict.py looks into sub-folders with reading.recursive=true)" if deeper else ""
        raise BadInput(what, f"holds no CT series, only {found}", remedy)
    table = "; ".join(f"{uid}: {_summary(members)}" for uid, members in sorted(series.items()))
    if wanted in RULES:
        uid = min(series, key=lambda uid: RULES[wanted](series[uid]))
    elif wanted is not None and wanted not in series:
        raise BadInput(what, f"holds no series {wanted}", f"choose from {table}")
    elif wanted is None and len(series) > 1:
        remedy = f"leave one in the folder, or choose: {SERIES_OPTIONS}"
        raise BadInput(what, f"holds {len(series)} CT series ({table})", remedy)
    else:
        uid = wanted or next(iter(series))
    chosen = f"series {uid} chosen of {len(series)}: {_summary(series[uid])}"
    return series[uid], [chosen] if len(series) > 1 else []


def _thickness(members: list[DicomFile]) -> float:
    return thickness_of(members[0]) or math.inf


def _thinness(members: list[DicomFile]) -> tuple[float, int, str]:
    """Smallest first: the thinnest slices, then the most of them."""
    return _thickness(members), -len(members), members[0].text("SeriesInstanceUID")


def _scarcity(members: list[DicomFile]) -> tuple[int, float, str]:
    return -len(members), _thickness(members), members[0].text("SeriesInstanceUID")


RULES: dict[str | None, Callable[[list[DicomFile]], tuple]] = {"thinnest": _thinness, "most_slices": _scarcity}
SERIES_OPTIONS = (
    "predict.py takes reading.series=thinnest, most_slices, all or a UID, your own data data.source.series=..."
)


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if "(s)" in name else f"{count} {name}(s)"


def _summary(members: list[DicomFile]) -> str:
    first = members[0]
    size = f"{first.text('Columns', '?')} x {first.text('Rows', '?')}"
    return f"{len(members)} images of {size}, {first.text('SliceThickness', '?')[:8]} mm thick"
