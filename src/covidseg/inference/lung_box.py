"""The box of the two lungs in a scan, found by their air on coarse voxels; or why it cannot be trusted.

Most of a chest CT is no lung: shoulders, abdomen, table. A network that looks only at the lungs' box is several times
faster. What must not happen is that a lung, or a part of one that disease has filled, lies outside of it. Disease fills
backs and bases first: so the box reaches from the front of the body to its back, as far to the one side as to the
other, and as far down as a body of this width has lungs.
Wherever the air does not look like two lungs (one missing or collapsed, bases filled, only a slab scanned) there is no
box, and the whole body is segmented.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from covidseg.data.prepare.grid import BODY_HU, Box, coarsened, widened
from covidseg.scans.geometry import union_box

AIR_HU = -400  # lung, emphysema and mild ground glass lie below; consolidation, fat and tissue above
MARGIN_MM = (30.0, 20.0, 20.0)  # z, y, x: beyond the outermost air
_HEIGHT = 0.9  # of the box from the apex down, at least, as a share of the body's width
_PART = 0.05  # pieces of air of at least this share of the largest are lung; bronchi and bowel are smaller
_LEAST_ML, _MOST_ML = 400.0, 6000.0  # of air in each lung
_MOST_UNLIKE = 3.0  # volume of one lung over that of the other
_MOST_APART_MM = 60.0  # between the lower ends of the two, and the upper ones
_LEAST_HEIGHT = 0.5  # of the air, as a share of the body's width
_LEAST_AIR = 0.25  # share of their box that is air


@dataclass(frozen=True)
class Doubt:
    """Why there is no lung box."""

    reason: str


def lung_box(hu: np.ndarray, spacing_zyx: tuple[float, float, float]) -> Box | Doubt:
    """Half-open box (z, y, x) in voxels of `hu`, (z, y, x) growing towards Superior, Posterior, Left."""
    coarse, steps = coarsened(hu, spacing_zyx)
    mm = np.multiply(steps, spacing_zyx)
    air = _inner_air(coarse < AIR_HU)
    if air is None:
        return Doubt("no air inside the body")
    extent = _extent(air)
    body = _extent(_largest(coarse[slice(*extent[0])] > BODY_HU))
    middle = (body[2][0] + body[2][1]) // 2  # of the body: what air is left may all be on one side
    right, left = air.copy(), air
    right[:, :, middle:] = False
    left[:, :, :middle] = False
    ml = float(np.prod(mm) / 1000)
    body_mm = float((body[2][1] - body[2][0]) * mm[2])
    if reason := _implausible(right, left, mm, ml, body_mm):
        return Doubt(reason)
    bottom, top = extent[0]
    lowest = min(bottom, top - round(_HEIGHT * body_mm / mm[0]))
    reach = max(middle - extent[2][0], extent[2][1] - middle)
    extent = [(lowest, top), body[1], (middle - reach, middle + reach)]
    return widened(extent, steps, hu.shape, spacing_zyx, MARGIN_MM)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask that is not empty."""
    pieces, count = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    found: np.ndarray = pieces == sizes.argmax()
    return found


def _inner_air(air: np.ndarray) -> np.ndarray | None:
    """The large pieces of air that do not reach the sides of the picture; None where there is none."""
    pieces, count = ndimage.label(air)
    outer = np.unique(np.concatenate([pieces[:, edge].ravel() for edge in (0, -1)]
                                     + [pieces[:, :, edge].ravel() for edge in (0, -1)]))  # fmt: skip
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[outer] = sizes[0] = 0
    if not sizes.max(initial=0):
        return None
    found: np.ndarray = (sizes >= _PART * sizes.max())[pieces] & air
    return found


def _implausible(right: np.ndarray, left: np.ndarray, mm: np.ndarray, ml: float, body_mm: float) -> str:
    """What does not look like two lungs; empty where all does."""
    volumes = [float(lung.sum()) * ml for lung in (right, left)]
    for name, volume in zip(("right", "left"), volumes, strict=True):
        if volume < _LEAST_ML:
            return f"{volume:.0f} ml of air in the {name} half"
        if volume > _MOST_ML:
            return f"{volume:.0f} ml of air in the {name} half, more than a lung holds"
    if max(volumes) > _MOST_UNLIKE * min(volumes):
        return f"{volumes[0]:.0f} ml of air on the right, {volumes[1]:.0f} ml on the left"
    ends = np.array([_extent(lung)[0] for lung in (right, left)]) * mm[0]  # (lung, (lower, upper))
    apart = np.abs(ends[0] - ends[1])
    if apart.max() > _MOST_APART_MM:
        return f"one lung ends {apart.max():.0f} mm beyond the other"
    extent = _extent(right | left)
    height = float((extent[0][1] - extent[0][0]) * mm[0])
    if height < _LEAST_HEIGHT * body_mm:
        return f"the air is {height:.0f} mm high in a body {body_mm:.0f} mm wide"
    share = sum(volumes) / ml / np.prod([last - first for first, last in extent])
    if share < _LEAST_AIR:
        return f"air fills {share:.0%} of the lungs' box"
    return ""


def _extent(mask: np.ndarray) -> list[tuple[int, int]]:
    """Half-open range of a mask along each axis."""
    return [(int(side.start), int(side.stop)) for side in union_box(mask)]
