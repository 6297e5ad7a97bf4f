"""DICOM segmentations (SEG, PS3.3 A.51): a frame for each slice of each segment, sparse and in any order."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covidseg.scans.gate.dicom_object import LABEL_MAP, read_object, unreadable
from covidseg.scans.gate.lattice import Lattice
from covidseg.scans.gate.meanings import meanings
from covidseg.scans.gate.names import printable, shown
from covidseg.scans.geometry import Geometry, triple
from covidseg.system.errors import BadInput

_KEYWORDS = (
    "SegmentationType", "MaximumFractionalValue", "SegmentSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation", "PixelData",
)  # fmt: skip
_COSINE_TOLERANCE = 1e-3  # what rounding in text leaves of a unit vector
_AGAIN = "export the segmentation again"


def read(path: Path, wanted: Geometry, labels: Mapping[int | str, int], mapped_by: str) -> tuple[np.ndarray, list[str]]:
    """(uint8 (z, y, x) on `wanted`, notes): the segments of a DICOM SEG, each frame on the slice where it lies.

    Segments are told by their labels as those of a .seg.nrrd are (`meanings`); where they overlap, the higher label
    counts. Slices without a frame are background. `BadInput` where a frame lies between the scan's voxels or outside
    it, where a fractional segmentation holds more than all or nothing, and for a file that contradicts itself.
    """
    what = shown(path)
    sop_class, dataset = read_object(path, _KEYWORDS)
    with unreadable(what, "its header"):
        described = [(int(one.SegmentNumber), str(one.get("SegmentLabel", ""))) for one in dataset.SegmentSequence]
        segments = {number: printable(label.strip()) for number, label in described if number}  # 0 is background
        groups = list(dataset.PerFrameFunctionalGroupsSequence)
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    names = [name or f"Segment {number}" for number, name in segments.items()]
    label_of = dict(zip(segments, meanings(what, names, labels, mapped_by), strict=True))
    frames = _frames(what, dataset, len(groups))
    by_segment = sop_class == LABEL_MAP or str(dataset.get("SegmentationType", "")) == "LABELMAP"
    mask = np.zeros(wanted.shape_zyx, np.uint8)
    lattice = Lattice(wanted, mask)
    for number, (frame, group) in enumerate(zip(frames, groups, strict=True), start=1):
        if not frame.any():
            continue
        with unreadable(what, f"frame {number}"):
            place = _place(what, frame.shape, (group, shared), wanted)
            drawn = frame if by_segment else (frame > 0) * _segment(group, shared)
        for segment in np.unique(drawn[drawn > 0]).tolist():
            if segment not in label_of:
                raise BadInput(what, f"frame {number} is of segment {segment}, which it does not describe", _AGAIN)
            if not lattice.add((drawn == segment)[None] * np.uint8(label_of[segment]), place):
                wrong = f"frame {number} does not lie on the voxels of its scan, or outside it"
                raise BadInput(what, wrong, "give the segmentation of this scan")
    return mask, [f"segments: {', '.join(names)}"]


def _frames(what: str, dataset: Any, count: int) -> np.ndarray:
    """(frames, rows, columns) unsigned: 0 or 1 where one segment is, or the segment's number."""
    with unreadable(what, "its header"):
        shape = (count, int(dataset.Rows), int(dataset.Columns))
        bits = int(dataset.BitsAllocated)
        if int(dataset.NumberOfFrames) != count:
            wrong = f"has {dataset.NumberOfFrames} frames and functional groups for {count}"
            raise BadInput(what, wrong, _AGAIN)
        native = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    held, needed = len(dataset.PixelData), -(-math.prod(shape) * bits // 8)
    if native and not needed <= held <= needed + 1:
        raise BadInput(what, f"holds {held} bytes of voxels, its header says {needed}", "copy or export it again")
    with unreadable(what, "its voxels"):
        frames = dataset.pixel_array.reshape(shape)
    if str(dataset.get("SegmentationType", "")) == "FRACTIONAL":
        most = int(dataset.get("MaximumFractionalValue", 255))
        if not np.isin(frames, (0, most)).all():
            raise BadInput(what, "is fractional: probabilities, not a mask", "export it as a binary segmentation")
        frames = frames > 0
    return frames


def _place(what: str, shape: tuple[int, int], groups: tuple[Any, Any], wanted: Geometry) -> Geometry:
    """Where one frame lies, as a volume one slice thick; the way to the next slice is the scan's."""
    axes = np.array(_macro(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), float).reshape(2, 3)
    row_mm, column_mm = _macro(groups, "PixelMeasuresSequence", "PixelSpacing")
    origin = _macro(groups, "PlanePositionSequence", "ImagePositionPatient")
    if not np.allclose(axes @ axes.T, np.eye(2), rtol=0, atol=_COSINE_TOLERANCE):
        raise BadInput(what, "ImageOrientationPatient is not two unit vectors at right angles", _AGAIN)
    direction = np.stack([*axes, np.cross(*axes)], axis=1)
    nearest = int(np.abs(direction[:, 2] @ np.reshape(wanted.direction, (3, 3))).argmax())
    step = wanted.spacing_zyx[::-1][nearest]
    return Geometry((1, *shape), (step, float(row_mm), float(column_mm)), triple(map(float, origin)),
                    tuple(direction.ravel()))  # fmt: skip


def _segment(*groups: Any) -> int:
    return int(_macro(groups, "SegmentIdentificationSequence", "ReferencedSegmentNumber"))


def _macro(groups: tuple[Any, ...], sequence: str, name: str) -> Any:
    """An attribute of a frame: of its own functional groups, or of those that all frames share."""
    items: Iterator[Any] = (item for group in groups for item in (group.get(sequence) or []))
    return next(items)[name].value
