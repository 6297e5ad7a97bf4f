"""Scans and masks in: with `write`, the only module of the suite that meets files of scanners and viewers.

Reading goes through the input gate (`covidseg.scans.gate`), which refuses with one line what is damaged, ambiguous or
no CT in Hounsfield units. Arrays are (z, y, x) in the order of the file; `Geometry` says where they lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from covidseg.scans.gate import dicom, dicom_seg, metaimage, nifti, nrrd, rtstruct, segmentation
from covidseg.scans.gate.assume import Assume
from covidseg.scans.gate.dicom_object import STRUCTURE_SET, decoding, is_dicom_mask, object_file, sop_class_of
from covidseg.scans.gate.finding import ALL_SERIES, ScanSource, ScanSources, find
from covidseg.scans.gate.grids import Volume, smallness_note
from covidseg.scans.gate.lattice import on_grid
from covidseg.scans.gate.names import is_segmentation, kind, shown, suffix_of
from covidseg.scans.gate.values import to_hu, to_labels
from covidseg.scans.geometry import Geometry
from covidseg.system.errors import BadInput

__all__ = [
    "ALL_SERIES",
    "Scan",
    "ScanSource",
    "ScanSources",
    "find_scans",
    "read_mask",
    "read_scan",
    "read_volume",
]

_READERS = {
    ".nii.gz": nifti.read, ".nii": nifti.read, ".mha": metaimage.read, ".mhd": metaimage.read,
    ".nrrd": nrrd.read, ".nhdr": nrrd.read,
}  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """A CT: `voxels` int16 HU (z, y, x) in [-1024, 3071], where they lie, and what was done or seen while reading."""

    voxels: np.ndarray
    geometry: Geometry
    notes: tuple[str, ...]
    source: str  # the name of the file or folder, without its path
    thickness_mm: float | None = None  # of a slice, where the file says it: less than they lie apart leaves gaps
    series_uid: str | None = None  # of the DICOM series that was read
    slices: tuple[tuple[Path, int], ...] = ()  # (file, frame in it) of each slice in order, where it is DICOM


def read_scan(
    path: Path | str,
    *,
    assume: Mapping[str, Any] | None = None,
    series: str | None = None,
    series_uid: str | None = None,
    recursive: bool = False,
    option: str = "reading.assume",
) -> Scan:
    """Read a CT from a NIfTI, MetaImage or NRRD file or from a folder of DICOM slices.

    `assume` holds what the user vouches for where the file does not say it (see `gate.assume.Assume`); `series`
    (thinnest, most_slices or a UID), `series_uid` and `recursive` choose among DICOM files; `option` is where `assume`
    is configured, for the remedies. Raises `BadInput` or `EnvironmentFault`, with the name of the file at fault.
    """
    assumed, what = Assume.of(assume, option), shown(path)
    if kind(path) == "folder":
        volume = dicom.read(Path(path), assumed, series_uid or series, recursive)
    elif series_uid is not None:
        raise BadInput(what, "is a file, and series_uid chooses within a DICOM folder", "drop series_uid")
    else:
        volume = read_volume(Path(path), assumed)
    voxels, seen = to_hu(volume, what, assumed)
    notes = (*volume.notes, *smallness_note(volume.geometry), *seen)
    return Scan(voxels, volume.geometry, notes, what, volume.thickness_mm, volume.series_uid, volume.slices)


def find_scans(path: Path | str, recursive: bool = False, series: str | None = None) -> ScanSources:
    """The scans at `path`: one file, one DICOM folder, or a folder of either (of folders of them with `recursive`, or
    beside a DICOMDIR). `series="all"`: each CT series of a folder is a scan of its own.

    Hidden files are passed over and counted. Raises `BadInput` when there is none.
    """
    return find(path, recursive, series == ALL_SERIES)


def read_mask(
    path: Path | str,
    geometry: Geometry,
    *,
    labels: Mapping[int | str, int] | None = None,
    assume: Mapping[str, Any] | None = None,
    option: str = "",
    mapped_by: str = "",
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(uint8 (z, y, x), notes): the labels of a NIfTI, MetaImage or NRRD file that lies on `geometry`, or of a DICOM
    SEG or RTSTRUCT (a file, or a folder with one of them).

    `labels` maps stored values, or names of segments or regions, to labels, with 0 always background; None means
    {1: 1}. `BadInput` for any other value, for a fraction, and when its voxels do not lie on those of `geometry` to 0.1
    voxel at the corners; the axes may come in another order or direction, and a .seg.nrrd or a DICOM SEG be cropped to
    what is drawn (`on_grid`). Only `orientation` of `assume` bears on a mask. `option` is where `assume` is configured,
    and `mapped_by` the override that gives a VALUE a meaning: the remedies name them.
    """
    what = shown(path)
    assumed = replace(Assume.of(assume, option), size=True)  # its scan says what is right
    meant: Mapping[int | str, int] = {0: 0, **({1: 1} if labels is None else labels)}
    if not suffix_of(path) and is_dicom_mask(Path(path)):
        return _read_dicom_mask(Path(path), geometry, meant, mapped_by)
    if is_segmentation(path):
        volume, meant = segmentation.read(Path(path), assumed, meant, mapped_by)
    else:
        volume = read_volume(Path(path), assumed)
    values = {value: label for value, label in meant.items() if not isinstance(value, str)}
    mask, notes = to_labels(volume, what, values, mapped_by)
    mask, moved = on_grid(what, mask, volume.geometry, geometry, may_be_cropped=is_segmentation(path))
    return mask, (*volume.notes, *notes, *moved)


def _read_dicom_mask(
    path: Path, geometry: Geometry, labels: Mapping[int | str, int], mapped_by: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    with decoding(shown(path)):
        file = object_file(path)
    with decoding(shown(file)):
        read = rtstruct.read if sop_class_of(file) == STRUCTURE_SET else dicom_seg.read
        mask, notes = read(file, geometry, labels, mapped_by)
    return mask, tuple(notes)


def read_volume(path: Path, assume: Assume) -> Volume:
    """A file of any format as the gate has read it, its values unjudged."""
    reader = _READERS.get(suffix_of(path))
    if kind(path) == "folder" or reader is None:
        wrong = "is a folder" if kind(path) == "folder" else "has no extension of a volume"
        raise BadInput(shown(path), wrong, f"give a file of {', '.join(_READERS)}; DICOM slices as their folder")
    return reader(path, assume)
