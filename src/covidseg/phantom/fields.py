"""Coordinates, soft edges and random fields that all parts of a phantom are made of. Millimetres throughout."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from covidseg.scans.geometry import triple

SLAB_VOXELS = 1 << 16  # 256 kB an array


@dataclass(frozen=True)
class Lattice:
    """A block of voxels in the patient: (z, y, x) grow towards Superior, Posterior, Left; (0, 0, 0) mm is mid-chest."""

    shape_zyx: tuple[int, int, int]
    spacing_zyx: tuple[float, float, float]
    centre_zyx: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions of the voxels along z, y and x, shaped to broadcast against each other."""
        lines = [
            ((np.arange(n) - (n - 1) / 2) * mm + middle).astype(np.float32)
            for n, mm, middle in zip(self.shape_zyx, self.spacing_zyx, self.centre_zyx, strict=True)
        ]
        return triple(np.ix_(*lines))

    @property
    def edge_mm(self) -> float:
        """Over how many mm a border fades, so that thin things do not alias."""
        return float(np.mean(self.spacing_zyx[1:]))

    def box(
        self, low_zyx: Sequence[float] | np.ndarray, high_zyx: Sequence[float] | np.ndarray
    ) -> tuple[slice, slice, slice] | None:
        """The voxels between two corners in mm, None where there is none."""
        sides = []
        for axis, low, high in zip(self.axes, low_zyx, high_zyx, strict=True):
            first, last = np.searchsorted(axis.ravel(), (low, high))
            if first == last:
                return None
            sides.append(slice(int(first), int(last)))
        return triple(sides)

    def slabs(self) -> Iterator[tuple[slice, slice, slice]]:
        """The whole lattice in parts of some slices, or rows, whose arrays fit into a processor's cache."""
        slices, rows, columns = self.shape_zyx
        thick = max(1, SLAB_VOXELS // (rows * columns))
        high = rows if thick > 1 else max(1, SLAB_VOXELS // columns)
        for z in range(0, slices, thick):
            for y in range(0, rows, high):
                yield slice(z, z + thick), slice(y, y + high), slice(None)

    def part(self, box: tuple[slice, slice, slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The axes of a box of voxels."""
        z, y, x = self.axes
        return z[box[0]], y[:, box[1]], x[:, :, box[2]]


def inside(distance: np.ndarray, edge_mm: float) -> np.ndarray:
    """Share of a voxel that lies in a body, from the signed distance of its centre (positive inside)."""
    return np.clip(distance / np.float32(edge_mm) + np.float32(0.5), 0, 1)


def paint(hu: np.ndarray, share: np.ndarray, value: np.ndarray | float) -> None:
    """Let `share` of each voxel be of density `value`, in place."""
    hu += share * (value - hu)


def ellipsoid(
    axes: Sequence[np.ndarray], centre_zyx: Sequence[float], radii_zyx: Sequence[float], power: float = 2.0
) -> np.ndarray:
    """Signed distance to a (super)ellipsoid, positive inside; good near its surface, in units of its mean radius."""
    total = np.float32(0)
    for axis, middle, radius in zip(axes, centre_zyx, radii_zyx, strict=True):
        off = (axis - np.float32(middle)) / np.float32(radius)
        total = total + (np.square(off) if power == 2 else np.abs(off) ** np.float32(power))
    root = np.sqrt(total) if power == 2 else total ** np.float32(1 / power)
    return np.asarray((1 - root) * np.float32(np.mean(radii_zyx)))


def smooth_noise(draw: np.random.Generator, lattice: Lattice, length_mm: float) -> np.ndarray:
    """float32 noise of mean 0 and about unit variance that changes over `length_mm`, on the voxels of a lattice."""
    knots = [max(2, int(n * mm / length_mm) + 3) for n, mm in zip(lattice.shape_zyx, lattice.spacing_zyx, strict=True)]
    coarse = draw.standard_normal(knots).astype(np.float32)
    for axis, (n, mm, count) in enumerate(zip(lattice.shape_zyx, lattice.spacing_zyx, knots, strict=True)):
        at = draw.uniform() + np.arange(n) * (mm / length_mm)
        at *= min(1.0, (count - 1.01) / max(at[-1], 1e-6))
        below = at.astype(int)
        share = at - below
        share = (share * share * (3 - 2 * share)).astype(np.float32)  # no creases at the knots
        coarse = _between(coarse, axis, below, share)
    coarse *= np.float32(1.6)  # interpolation averages; this brings the variance back to about one
    return coarse


def _between(coarse: np.ndarray, axis: int, below: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Values between the knots `below` and those after them along an axis, at `share` of the way."""
    if axis < 2:
        low, high = np.take(coarse, below, axis), np.take(coarse, below + 1, axis)
        return np.asarray(low + (high - low) * share.reshape([-1 if i == axis else 1 for i in range(3)]))
    fine = np.empty((*coarse.shape[:2], len(below)), np.float32)
    for plane, knots in zip(fine, coarse, strict=True):  # a slice at a time stays in the cache
        low = np.take(knots, below, 1)
        np.take(knots, below + 1, 1, out=plane)
        plane -= low
        plane *= share
        plane += low
    return fine


def blur(volume: np.ndarray, sigma_mm: Sequence[float], spacing_zyx: Sequence[float]) -> np.ndarray:
    """Gaussian point spread of `sigma_mm` along z, y, x."""
    sigma = [mm / step for mm, step in zip(sigma_mm, spacing_zyx, strict=True)]
    return ndimage.gaussian_filter(volume, sigma, mode="nearest", truncate=3)
