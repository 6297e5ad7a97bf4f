"""One scan with its masks as a page holds them: grey values as pictures, masks as packed bits, both made smaller."""

import base64
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from covidseg.scans.geometry import union_box

REFERENCE = "*"  # among the names of methods, which no row can have
LOW_HU, HIGH_HU = -1250.0, 250.0  # what the 256 grey values span: every window that the viewer offers lies in it
_PIXEL_MM, _SLICE_MM = 1.4, 2.5  # nothing finer is kept
_PIXELS, _SLICES = 224, 72  # at most, of a slice's side and of a scan
_MARGIN_MM = 12.0
_QUALITY = 82  # of the lossy picture; the masks are exact


@dataclass(frozen=True)
class Shown:
    """A case in the viewer. Volumes are (z, y, x), axes to Superior, Posterior, Left, on one grid.

    `masks`: structure -> name -> bool, where the name is a method's, or `REFERENCE`; `scores`: structure ->
    method -> Dice; `lung`: the whole lungs, around the surfaces of lesions.
    """

    case: str
    set: str
    label: str
    image: np.ndarray  # HU
    spacing_zyx: Sequence[float]  # mm
    masks: Mapping[str, Mapping[str, np.ndarray]]
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lung: np.ndarray | None = None


def thinned(volume: np.ndarray, spacing_zyx: Sequence[float]) -> np.ndarray:
    """A copy of the voxels that the viewer could keep, `thinned_spacing` apart: the others need not be held."""
    every = tuple(slice(None, None, _stride(step, axis)) for axis, step in enumerate(spacing_zyx))
    return np.array(volume[every])


def thinned_spacing(spacing_zyx: Sequence[float]) -> list[float]:
    """mm, of what `thinned` returns."""
    return [step * _stride(step, axis) for axis, step in enumerate(spacing_zyx)]


def packed(shown: Shown) -> dict[str, Any]:
    """For JSON: slices beside each other in one WebP picture, masks as zlib of bits (z, y, x), all in base64."""
    everything = [mask for named in shown.masks.values() for mask in named.values()]
    everything += [] if shown.lung is None else [shown.lung]
    box = _box(everything, shown.image.shape, shown.spacing_zyx)
    axes = [_taken(side, step, axis) for axis, (side, step) in enumerate(zip(box, shown.spacing_zyx, strict=True))]
    grid = np.ix_(*(taken for taken, _ in axes))
    grey = np.clip((shown.image[grid].astype(np.float32) - LOW_HU) / (HIGH_HU - LOW_HU), 0, 1)
    picture, columns = _sheet(np.rint(255 * grey).astype(np.uint8))
    masks = {
        structure: {name: _bits(mask[grid]) for name, mask in named.items()} for structure, named in shown.masks.items()
    }
    return {
        "case": shown.case,
        "set": shown.set,
        "label": shown.label,
        "shape": list(grey.shape),
        "spacing": [round(step * stride, 4) for step, (_, stride) in zip(shown.spacing_zyx, axes, strict=True)],
        "range": [LOW_HU, HIGH_HU],
        "columns": columns,
        "image": f"data:image/webp;base64,{base64.b64encode(picture).decode()}",
        "masks": masks,
        "lung": None if shown.lung is None else _bits(shown.lung[grid]),
        "scores": {structure: dict(found) for structure, found in shown.scores.items()},
    }


def script_data(content: Any) -> str:
    """JSON that may stand in a <script> element, whatever the names in it are."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _box(masks: Sequence[np.ndarray], shape: Sequence[int], spacing: Sequence[float]) -> Sequence[tuple[int, int]]:
    """Half-open, around all masks with a margin; the whole scan where nothing is marked."""
    if not any(mask.any() for mask in masks):
        return [(0, size) for size in shape]
    sides = []
    for side, size, step in zip(union_box(*masks), shape, spacing, strict=True):
        margin = round(_MARGIN_MM / step)
        sides.append((max(int(side.start) - margin, 0), min(int(side.stop) + margin, size)))
    return sides


def _taken(side: tuple[int, int], step: float, axis: int) -> tuple[np.ndarray, int]:
    """(indices along an axis, how far apart they are)."""
    low, high = side
    stride = max(_stride(step, axis), -(-(high - low) // (_SLICES if axis == 0 else _PIXELS)))
    return np.arange(low, high, stride), stride


def _stride(step: float, axis: int) -> int:
    """How many voxels go into one that is not finer than the viewer's, or just so."""
    return max(1, int((_SLICE_MM if axis == 0 else _PIXEL_MM) / step + 0.01))


def _sheet(grey: np.ndarray) -> tuple[bytes, int]:
    """(WebP file of all slices in rows of so many, how many)."""
    count, height, width = grey.shape
    columns = max(1, round((count * height / width) ** 0.5))
    rows = -(-count // columns)
    sheet = np.zeros((rows * height, columns * width), np.uint8)
    for number, plane in enumerate(grey):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = plane
    content = io.BytesIO()
    Image.fromarray(sheet).convert("RGB").save(content, "WEBP", quality=_QUALITY)
    return content.getvalue(), columns


def _bits(mask: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes(), 9)).decode()
