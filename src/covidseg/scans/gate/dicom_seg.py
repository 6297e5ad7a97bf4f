"""DICOM segmentations (SEG, PS3.3 A.51): a frame for each slice of each segment, sparse and in any order."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covidseg.scans.gate.dicom_object import LABEL_MAP, read_object
from covidseg.scans.gate.dicom_stack import direction_of
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
_AGAIN, _ELSEWHERE = "export the segmentation again", "give the segmentation of this scan"


def read(path: Path, wanted: Geometry, labels: Mapping[int | str, int], mapped_by: str) -> tuple[np.ndarray, list[str]]:
    """(uint8 (z, y, x) on `wanted`, notes): the segments of a DICOM SEG, each frame on the slice where it lies.

    Segments are told by their labels as those of a .seg.nrrd are (`meanings`); where they overlap, the higher label
    counts. Slices without a frame are background. `BadInput` where a frame lies between the scan's voxels or outside
    it, where a fractional segmentation holds more than all or nothing, and for a file that contradicts itself.
    """
    what = shown(path)
    sop_class, dataset = read_object(path, _KEYWORDS)
    described = [(int(one.SegmentNumber), str(one.get("SegmentLabel", ""))) for one in dataset.SegmentSequence]
    segments = {number: printable(label.strip()) for number, label in described if number}  # 0 is background
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    names = [name or f"Segment {number}" for number, name in segments.items()]
    label_of = dict(zip(segments, meanings(what, names, labels, mapped_by), strict=True))
    frames = _frames(what, dataset, len(groups), max(wanted.shape_zyx))
    by_segment = sop_class == LABEL_MAP or str(dataset.get("SegmentationType", "")) == "LABELMAP"
    mask = np.zeros(wanted.shape_zyx, np.uint8)
    lattice = Lattice(wanted, mask)
    for number, (frame, group) in enumerate(zip(frames, groups, strict=True), start=1):
        if not frame.any():
            continue
        place = _place(what, frame.shape, (group, shared), wanted)
        drawn = frame if by_segment else (frame > 0) * _segment(group, shared)
        for segment in np.unique(drawn[drawn > 0]).tolist():
            if segment not in label_of:
                raise BadInput(what, f"frame {number} is of segment {segment}, which it does not describe", _AGAIN)
            if not lattice.add((drawn == segment)[None] * np.uint8(label_of[segment]), place):
                wrong = f"frame {number} does not lie on the voxels of its scan, or outside it"
                raise BadInput(what, wrong, _ELSEWHERE)
    return mask, [f"segments: {', '.join(names)}"]


def _frames(what: str, dataset: Any, count: int, longest: int) -> np.ndarray:
    """(frames, rows, columns) unsigned: 0 or 1 where one segment is, or the segment's number.

    `longest`: voxels of the scan's longest axis, beyond which no frame goes; a header may claim gigabytes.
    """
    shape = (count, int(dataset.Rows), int(dataset.Columns))
    bits = int(dataset.BitsAllocated)
    if int(dataset.NumberOfFrames) != count:
        wrong = f"has {dataset.NumberOfFrames} frames and functional groups for {count}"
        raise BadInput(what, wrong, _AGAIN)
    if max(shape[1:]) > longest:
        raise BadInput(what, f"has frames of {shape[1]} x {shape[2]}, its scan at most {longest} voxels", _ELSEWHERE)
    native = not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    held, needed = len(dataset.PixelData), -(-math.prod(shape) * bits // 8)
    if native and not needed <= held <= needed + 1:
        raise BadInput(what, f"holds {held} bytes of voxels, its header says {needed}", "copy or export it again")
    frames = dataset.pixel_array.reshape(shape)
    if str(dataset.get("SegmentationType", "")) == "FRACTIONAL":
        most = int(dataset.get("MaximumFractionalValue", 255))
        if not np.isin(frames, (0, most)).all():
            raise BadInput(what, "is fractional: probabilities, not a mask", "export it as a binary segmentation")
        frames = frames > 0
    return frames


def _place(what: str, shape: tuple[int, int], groups: tuple[Any, Any], wanted: Geometry) -> Geometry:
    """Where one frame lies, as a volume one slice thick; the way to the next slice is the scan's."""
    orientation = _macro(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
    row_mm, column_mm = _macro(groups, "PixelMeasuresSequence", "PixelSpacing")
    origin = triple(map(float, _macro(groups, "PlanePositionSequence", "ImagePositionPatient")))
    direction = direction_of(what, np.array(orientation, float))
    nearest = int(np.abs(direction[:, 2] @ np.reshape(wanted.direction, (3, 3))).argmax())
    spacing = (wanted.spacing_zyx[::-1][nearest], float(row_mm), float(column_mm))
    return Geometry((1, *shape), spacing, origin, tuple(direction.ravel()))


def _segment(*groups: Any) -> int:
    return int(_macro(groups, "SegmentIdentificationSequence", "ReferencedSegmentNumber"))


def _macro(groups: tuple[Any, ...], sequence: str, name: str) -> Any:
    """An attribute of a frame: of its own functional groups, or of those that all frames share."""
    for group in groups:
        for item in group.get(sequence) or []:
            return item[name].value
    raise KeyError(sequence)
