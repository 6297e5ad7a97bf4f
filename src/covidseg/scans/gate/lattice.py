"""A mask onto the voxels of its scan, where both lie on one lattice: nothing is resampled, no label changes."""

import numpy as np

from covidseg.scans.gate.grids import TOLERANCE_VOXELS, apart
from covidseg.scans.geometry import Geometry, triple
from covidseg.system.errors import BadInput


def on_grid(
    what: str, mask: np.ndarray, found: Geometry, wanted: Geometry, may_be_cropped: bool
) -> tuple[np.ndarray, list[str]]:
    """(mask on `wanted`, notes): labels (z, y, x) that lie on `found`.

    The axes may come in another order or direction, as where one program wrote the scan and another one the mask. With
    `may_be_cropped` the lattice may be cut to what is drawn, as 3D Slicer does; in another file a part of a scan is the
    mask of something else, or what is left of one. `BadInput` where a voxel would lie more than 0.1 voxels off,
    or outside the scan.
    """
    if found.shape_zyx == wanted.shape_zyx and not apart(wanted, found):
        return mask, []
    turned, own = found.canonical(), wanted.canonical()
    labels = found.to_canonical(mask)
    if turned.shape_zyx == own.shape_zyx and not apart(own, turned):
        note = "the mask's axes come in another order or direction than its scan's"
        return np.ascontiguousarray(wanted.from_canonical(labels)), [note]
    whole = np.zeros(wanted.shape_zyx, mask.dtype)
    if not (may_be_cropped and Lattice(wanted, whole).add(mask, found)):
        raise _elsewhere(what, found, wanted)
    return whole, ["the mask covers a part of its scan; outside it is background"]


class Lattice:
    """An array on the grid of a scan, to which parts are added that lie on the same voxels, in any order of axes."""

    def __init__(self, grid: Geometry, array: np.ndarray):
        """`array` (z, y, x) lies on `grid` and is changed in place."""
        self._grid, self._array = grid.canonical(), grid.to_canonical(array)

    def add(self, part: np.ndarray, geometry: Geometry) -> bool:
        """Put `part` where it lies, the higher value counting; False where that is between voxels or outside."""
        turned = geometry.canonical()
        start = _offset(turned, self._grid)
        if start is None or not _within(start, turned.shape_zyx, self._grid.shape_zyx):
            return False
        where = tuple(slice(a, a + n) for a, n in zip(start, turned.shape_zyx, strict=True))
        np.maximum(self._array[where], geometry.to_canonical(part), out=self._array[where])
        return True


def _offset(part: Geometry, whole: Geometry) -> tuple[int, ...] | None:
    """Voxels (z, y, x) from the first voxel of `whole` to that of `part`; None where they are on no common lattice."""
    away = np.reshape(whole.direction, (3, 3)).T @ (np.array(part.origin_xyz) - whole.origin_xyz)
    steps = np.rint(away[::-1] / whole.spacing_zyx).astype(int)
    moved = Geometry(part.shape_zyx, whole.spacing_zyx, triple(whole.to_mm(steps[::-1])), whole.direction)
    return None if apart(moved, part) else tuple(int(step) for step in steps)


def _within(start: tuple[int, ...], size: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return all(0 <= first <= length - n for first, n, length in zip(start, size, whole, strict=True))


def _elsewhere(what: str, found: Geometry, wanted: Geometry) -> BadInput:
    remedy = "give the mask of this scan, or export both from one program"
    if found.shape_zyx != wanted.shape_zyx:
        sizes = [" x ".join(map(str, grid.shape_zyx[::-1])) for grid in (found, wanted)]
        wrong = f"has {sizes[0]} voxels, its scan {sizes[1]}"
        return BadInput(what, wrong, remedy)
    far = wanted.displacement_mm(found)
    wrong = f"its corners lie up to {far:.3g} mm from those of its scan (origin, spacing or direction differ)"
    return BadInput(what, f"{wrong}; more than {TOLERANCE_VOXELS} voxels", remedy)
