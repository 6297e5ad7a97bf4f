"""From the numbers of a header to a `Geometry`, when they describe a chest CT that can exist."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from covidseg.scans.gate.assume import AXES, Assume
from covidseg.scans.geometry import Geometry, triple
from covidseg.system.errors import BadInput

TOLERANCE_VOXELS = 0.1  # two grids are one when no corner lies further apart than this
_SPACING_MM = (0.2, 10.0)
_MAX_EXTENT_MM = 1000.0
_VOUCHED_SPACING_MM, _VOUCHED_EXTENT_MM = (0.05, 50.0), 2500.0  # of `assume.size`
_SMALL_EXTENT_MM = 50.0
_ROUNDING = 1e-5  # of a direction cosine: what is nearer to right angles stays as it is stored


@dataclass
class Volume:
    """A file as the gate has read it: `stored` (z, y, x) numbers, of which value = slope * stored + intercept."""

    stored: np.ndarray
    geometry: Geometry
    slope: float = 1.0
    intercept: float = 0.0
    notes: list[str] = field(default_factory=list)
    thickness_mm: float | None = None  # of a slice; None: the file does not say it
    series_uid: str | None = None  # of a DICOM series
    slices: tuple[tuple[Path, int], ...] = ()  # (file, frame in it) of each slice in order, of a DICOM series


def require_shape(what: str, sizes: Sequence[int]) -> tuple[int, int, int]:
    """(z, y, x) from header sizes in x, y, z, ... order; trailing axes of length 1 are dropped."""
    sizes = list(sizes)
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3 or min(sizes) < 1:
        found = " x ".join(map(str, sizes)) or "no axes"
        raise BadInput(what, f"needs one 3-D scalar volume, holds {found}", "export a single volume")
    return triple(int(n) for n in reversed(sizes))


def require_spacing(what: str, spacing_xyz: Sequence[float] | np.ndarray, assume: Assume) -> np.ndarray:
    """Three spacings from 0.2 to 10 mm, unless vouched for; others are in another unit, or not measured at all."""
    spacing, (low, high) = np.asarray(spacing_xyz, float), _VOUCHED_SPACING_MM if assume.size else _SPACING_MM
    if spacing.shape != (3,) or not ((spacing >= low * (1 - 1e-6)) & (spacing <= high * (1 + 1e-6))).all():
        found = " x ".join(f"{mm:g}" for mm in spacing)
        remedy = "check the units of its spacing"
        remedy = remedy if assume.size else assume.or_say(remedy, "size=true if it is so, as in HRCT with gaps")
        raise BadInput(what, f"voxels of {found} mm, CT has {low:g} to {high:g} mm", remedy)
    return spacing


def assumed_direction(what: str, assume: Assume) -> np.ndarray:
    """(3, 3) direction for a file without an orientation, as the user vouches for it."""
    if assume.orientation is None:
        remedy = assume.or_say("export it from the source again", "orientation=LPS, or what it is, if you know it")
        raise BadInput(what, "says nothing about orientation", remedy)
    direction = np.zeros((3, 3))
    for axis, letter in enumerate(assume.orientation):
        row, sign = AXES[letter]
        direction[row, axis] = sign
    return direction


def believable(
    what: str, shape_zyx: tuple[int, int, int], direction, spacing_xyz, origin_xyz, assume: Assume
) -> Geometry:
    """The geometry of a direction (3, 3) in LPS, spacing and origin in mm, or `BadInput`.

    Spacing as above, at most one metre across unless vouched for. Axes are at right angles and of unit length but for
    rounding: those that are, to the tolerance at the corners, take their place.
    """
    direction, origin = np.asarray(direction, float), np.asarray(origin_xyz, float)
    if not (np.isfinite(direction).all() and np.isfinite(origin).all()):
        raise BadInput(what, "its geometry holds NaN or infinity", "convert it from the source again")
    spacing = require_spacing(what, spacing_xyz, assume)
    extent = (spacing * shape_zyx[::-1]).max()
    longest = _VOUCHED_EXTENT_MM if assume.size else _MAX_EXTENT_MM
    if extent > longest:
        remedy = assume.or_say(
            "check its spacing", *([] if assume.size else ["size=true for a scan of the whole body"])
        )
        raise BadInput(what, f"is {extent:.0f} mm long, a chest CT at most {longest:.0f} mm", remedy)
    left, stretch, right = np.linalg.svd(direction)
    squared = left @ right
    reach = spacing * (np.array(shape_zyx[::-1]) - 1)  # mm along each axis
    off = np.linalg.norm((direction - squared) * reach, axis=0).sum()  # at the corner where it is most, at most
    if stretch.min() < 0.5 or not off <= TOLERANCE_VOXELS * spacing.min():
        shear = np.abs(direction.T @ direction - np.eye(3)).max()
        raise BadInput(what, f"its axes are sheared by {shear:.2g} (gantry tilt?)", "resample it to right angles")
    if np.abs(direction - squared).max() > _ROUNDING:
        direction = squared
    return Geometry(shape_zyx, triple(spacing[::-1]), triple(origin), tuple(direction.ravel()))


def believable_steps(
    what: str, shape_zyx: tuple[int, int, int], step: np.ndarray, origin_xyz, assume: Assume
) -> Geometry:
    """`believable` for formats that store direction times spacing: column i is the step in mm along index axis i."""
    with np.errstate(invalid="ignore", over="ignore"):
        spacing = np.linalg.norm(step, axis=0)
    require_spacing(what, spacing, assume)
    return believable(what, shape_zyx, step / spacing, spacing, origin_xyz, assume)


def apart(a: Geometry, b: Geometry) -> bool:
    """Whether two grids differ by more than the tolerance, at the corner where they differ most."""
    return not a.displacement_mm(b) <= TOLERANCE_VOXELS * min(a.spacing_zyx)


def smallness_note(geometry: Geometry) -> list[str]:
    """A word about volumes that are too narrow for a chest: crops are welcome, but seldom meant."""
    widths = sorted(n * mm for n, mm in zip(geometry.shape_zyx, geometry.spacing_zyx, strict=True))
    narrow = widths[1] < _SMALL_EXTENT_MM and not math.isclose(widths[1], _SMALL_EXTENT_MM)
    return [f"only {widths[2]:.0f} x {widths[1]:.0f} mm wide: a crop?"] if narrow else []
