"""3D Slicer's segmentations (.seg.nrrd): named segments, each a value in one of several layers of one file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covidseg.scans.gate import nrrd
from covidseg.scans.gate.assume import Assume
from covidseg.scans.gate.grids import Volume
from covidseg.scans.gate.meanings import meanings
from covidseg.scans.gate.names import printable, shown
from covidseg.system.errors import BadInput

_KEY = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer)")


@dataclass(frozen=True)
class Segment:
    """What the header says of one segment."""

    name: str
    value: int
    layer: int


def read(
    path: Path, assume: Assume, labels: Mapping[int | str, int], mapped_by: str
) -> tuple[Volume, Mapping[int | str, int]]:
    """(label map, what its values mean): of the segments of a file, or a plain NRRD's where it names no segment.

    `labels` tells segments by their names (`meanings`, where `mapped_by` is said). Where segments overlap, the higher
    label counts.
    """
    what = shown(path)
    volume, header = nrrd.read_layers(path, assume)
    segments = _segments(what, header.keys)
    if not segments:
        if volume.stored.shape[-1] != 1:
            raise BadInput(what, "has layers and names no segment", "save the segmentation again")
        return Volume(volume.stored[..., 0], volume.geometry), labels
    meaning = meanings(what, [segment.name for segment in segments], labels, mapped_by)
    mapped = np.zeros(volume.geometry.shape_zyx, np.uint8)
    for segment, label in zip(segments, meaning, strict=True):
        if not 0 <= segment.layer < volume.stored.shape[-1]:
            raise BadInput(what, f"has no layer {segment.layer}", "save the segmentation again")
        here = volume.stored[..., segment.layer] == segment.value
        mapped[here & (mapped < label)] = label
    names = ", ".join(segment.name for segment in segments)
    return Volume(mapped, volume.geometry, notes=[f"segments: {names}"]), {label: label for label in (0, *meaning)}


def _segments(what: str, keys: Mapping[str, str]) -> list[Segment]:
    found: dict[int, dict[str, str]] = {}
    for key, value in keys.items():
        if match := _KEY.fullmatch(key):
            found.setdefault(int(match[1]), {})[match[2]] = value
    try:
        return [
            Segment(printable(own.get("Name", f"Segment{number}")), int(own["LabelValue"]), int(own.get("Layer", 0)))
            for number, own in sorted(found.items())
        ]
    except (KeyError, ValueError):
        raise BadInput(what, "a segment of its header has no whole LabelValue", "save the segmentation again") from None
