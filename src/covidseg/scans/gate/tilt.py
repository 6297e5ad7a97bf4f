"""A tilted gantry: slices that shift sideways from one to the next, moved back so that they stand above one another."""

import numpy as np
from scipy import ndimage

from covidseg.scans.gate.grids import Volume
from covidseg.scans.geometry import Geometry, triple

_AIR_HU = -1024  # what lies beside a slice that was moved
_REGULAR_PIXELS = 0.1  # what a slice may be off an even shift


def sideways(positions: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """(n, 2) mm along rows and columns, from the first of (n, 3) slice positions; `direction` is (3, 3) columns."""
    return (positions - positions[0]) @ direction[:, :2]


def is_even(shift_mm: np.ndarray, pixel_mm: float) -> bool:
    """Whether every slice is moved on from the last by the same shift, as a tilted gantry does."""
    share = np.linspace(0, 1, len(shift_mm))[:, None]
    return bool(np.linalg.norm(shift_mm - share * shift_mm[-1], axis=1).max() <= _REGULAR_PIXELS * pixel_mm)


def straightened(volume: Volume, shift_mm: np.ndarray) -> Volume:
    """HU (z, y, x) with each slice moved by its (x, y) shift, linearly between pixels, on a grid that holds them all.

    Slices keep their planes, so nothing is interpolated between them. What lies beside a moved slice is air.
    """
    geometry, stored = volume.geometry, volume.stored
    shift = (shift_mm / geometry.spacing_zyx[:0:-1])[:, ::-1]  # pixels, (y, x)
    low, high = np.floor(shift.min(axis=0)), np.ceil(shift.max(axis=0))
    rows, columns = (np.array(stored.shape[1:]) + (high - low)).astype(int)
    moved = np.full((len(stored), rows, columns), _AIR_HU, np.float32)
    for image, target, by in zip(stored, moved, shift - low, strict=True):
        wide = np.full_like(target, _AIR_HU)
        wide[: image.shape[0], : image.shape[1]] = image
        ndimage.shift(wide, by, output=target, order=1, mode="grid-constant", cval=_AIR_HU)
    origin = geometry.to_mm(np.array([low[1], low[0], 0]))
    upright = Geometry(triple(moved.shape), geometry.spacing_zyx, triple(origin), geometry.direction)
    degrees = np.degrees(np.arctan2(np.linalg.norm(shift_mm[-1]), geometry.spacing_zyx[0] * (len(stored) - 1)))
    most = np.linalg.norm(shift_mm, axis=1).max()
    note = f"gantry tilt of {degrees:.1f} degrees: slices moved by up to {most:.1f} mm to stand above one another"
    return Volume(moved, upright, notes=[*volume.notes, note], thickness_mm=volume.thickness_mm,
                  series_uid=volume.series_uid)  # fmt: skip
