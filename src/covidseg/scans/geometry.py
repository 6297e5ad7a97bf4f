"""Where the voxels of a scan lie in the patient, and how to turn an array of them to one standard orientation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from typing import Any, Self, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Geometry:
    """The grid of one scan: voxel (z, y, x) lies at origin + direction · (spacing_xyz * (x, y, z)), in LPS millimetres.

    `origin_xyz` is the centre of voxel [0, 0, 0]. `direction` holds nine numbers, row by row, as SimpleITK's
    `GetDirection` gives them: its columns are the unit vectors along which x, y and z index grow. LPS: +x to the
    patient's Left, +y Posterior, +z Superior.
    """

    shape_zyx: tuple[int, int, int]
    spacing_zyx: tuple[float, float, float]
    origin_xyz: tuple[float, float, float]
    direction: tuple[float, ...]

    def __post_init__(self):
        for name, length, number in (
            ("shape_zyx", 3, int),
            ("spacing_zyx", 3, float),
            ("origin_xyz", 3, float),
            ("direction", 9, float),
        ):
            value = tuple(number(part) for part in getattr(self, name))
            if len(value) != length or not np.isfinite(value).all():
                raise ValueError(f"{name} must be {length} finite numbers, not {value}")
            object.__setattr__(self, name, value)
        if min(self.shape_zyx) < 1 or min(self.spacing_zyx) <= 0:
            raise ValueError(f"shape {self.shape_zyx} and spacing {self.spacing_zyx} must be positive")

    @cached_property
    def step_mm(self) -> np.ndarray:
        """(3, 3): column i is the way in mm from one voxel to the next along index axis i of (x, y, z)."""
        return np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing_zyx[::-1])

    def to_mm(self, index_xyz: np.ndarray) -> np.ndarray:
        """LPS position of (..., 3) continuous voxel indices in (x, y, z) order."""
        return np.asarray(index_xyz, float) @ self.step_mm.T + self.origin_xyz

    def corners_mm(self) -> np.ndarray:
        """(8, 3): the outer corners of the volume (half a voxel outside the corner voxels' centres), in LPS mm."""
        return self.to_mm(np.array(list(product(*((-0.5, n - 0.5) for n in self.shape_zyx[::-1])))))

    def displacement_mm(self, other: Self) -> float:
        """How far the worst corner of one volume lies from its fellow in the other; infinite when shapes differ."""
        if self.shape_zyx != other.shape_zyx:
            return float("inf")
        return float(np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1).max())

    @cached_property
    def _turn(self) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """For (S, P, L): which array axis runs closest to it, and whether it runs backwards."""
        cosines = np.reshape(self.direction, (3, 3))[::-1, ::-1]  # rows S, P, L; columns array axes z, y, x
        axes = max(permutations(range(3)), key=lambda order: sum(abs(cosines[i, axis]) for i, axis in enumerate(order)))
        return triple(axes), triple(bool(cosines[i, axis] < 0) for i, axis in enumerate(axes))

    def canonical(self) -> Self:
        """The same grid with its axes permuted and flipped so that (z, y, x) grow towards (Superior, Posterior, Left).

        Nothing is resampled: what is oblique stays as a rotation in `direction`.
        """
        axes, backwards = self._turn
        first = np.zeros(3)
        columns = []
        for axis, flip in zip(axes, backwards, strict=True):
            first[2 - axis] = self.shape_zyx[axis] - 1 if flip else 0
            column = np.reshape(self.direction, (3, 3))[:, 2 - axis]
            columns.append(-column if flip else column)
        return type(self)(
            shape_zyx=triple(self.shape_zyx[axis] for axis in axes),
            spacing_zyx=triple(self.spacing_zyx[axis] for axis in axes),
            origin_xyz=tuple(self.to_mm(first)),
            direction=tuple(np.stack(columns[::-1], axis=1).ravel()),
        )

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """A view of (..., z, y, x) on this grid with its last three axes turned to those of `canonical()`."""
        axes, backwards = self._turn
        self._require(array, self.shape_zyx)
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in axes))
        return turned[_reversed(backwards)]

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_canonical`: a view of an array on `canonical()`'s grid, in this grid's order."""
        axes, backwards = self._turn
        self._require(array, tuple(self.shape_zyx[axis] for axis in axes))
        lead = array.ndim - 3
        flipped = array[_reversed(backwards)]
        return flipped.transpose(*range(lead), *(lead + axes.index(axis) for axis in range(3)))

    def to_dict(self) -> dict[str, list]:
        """Plain lists for JSON; `from_dict` gives back an equal Geometry, to the last bit."""
        return {name: list(getattr(self, name)) for name in ("shape_zyx", "spacing_zyx", "origin_xyz", "direction")}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        return cls(**plain)

    @staticmethod
    def _require(array: np.ndarray, shape: tuple[int, ...]) -> None:
        if array.shape[-3:] != shape:
            raise ValueError(f"array of shape {array.shape} is not on a grid of {shape}")


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """The three values of three axes. Raises `ValueError` for more or fewer."""
    first, second, third = values
    return first, second, third


def union_box(*masks: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """Smallest box that holds every True voxel of the masks, `margin` voxels wider where the array allows it."""
    union = np.logical_or.reduce(masks)
    box = []
    for axis in range(union.ndim):
        hit = np.flatnonzero(union.any(axis=tuple(other for other in range(union.ndim) if other != axis)))
        box.append(slice(max(hit[0] - margin, 0), hit[-1] + 1 + margin) if hit.size else slice(0, 0))
    return tuple(box)


def _reversed(backwards: Iterable[bool]) -> tuple[Any, ...]:
    """The index that turns those of the last three axes round."""
    return (..., *(slice(None, None, -1 if flip else 1) for flip in backwards))
