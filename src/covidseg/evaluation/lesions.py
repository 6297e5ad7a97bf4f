"""Lesion-wise F1: which of the reference's lesions were found, and which of the predicted ones are there.

Lesions are found by the runs of voxels along a row: a mask has a few hundred times fewer of them than voxels.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SHARE = 0.1  # of a lesion's voxels that the other mask has to hold
_NEXT_ROWS = ((0, 1), (1, -1), (1, 0), (1, 1))  # (z, y) of the rows whose voxels may touch a row's and come after it


def lesion_f1(prediction: np.ndarray, reference: np.ndarray) -> float:
    """F1 over lesions of two boolean masks (z, y, x) of one shape, neither of them empty.

    A lesion is a part of a mask that is connected over faces, edges or corners. One of the reference is found if a
    tenth of its voxels are predicted, by however many predicted lesions: split by the prediction, it is found once. A
    predicted lesion is right if a tenth of its voxels lie in the reference, in however many of its lesions: one that
    merges several is right once, and finds each of those it covers. F1 is the harmonic mean of the share of lesions
    found and the share of predicted lesions that are right. So a mask of the whole lung is one wrong lesion.
    """
    found, right = _share_met(reference, prediction), _share_met(prediction, reference)
    return 2 * found * right / (found + right) if found + right else 0.0


def _share_met(mask: np.ndarray, other: np.ndarray) -> float:
    """Share of the lesions of `mask` of which `other` holds enough."""
    runs = Runs.of(mask)
    number, lesion = runs.connected()
    sizes = np.bincount(lesion, runs.stop - runs.start, number)
    covered = np.bincount(lesion, runs.count(other), number)
    return float(np.mean(covered >= SHARE * sizes))


@dataclass(frozen=True)
class Runs:
    """The runs of True along x of a mask (z, y, x), in order: row z * Y + y, first x, and the x behind the last."""

    shape: tuple[int, ...]
    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> Self:
        flat = _closed(mask)
        change = np.flatnonzero(np.diff(flat, prepend=False))
        row, start = np.divmod(change[::2], mask.shape[2] + 1)
        return cls(mask.shape, row, start, change[1::2] - row * (mask.shape[2] + 1))

    def connected(self) -> tuple[int, np.ndarray]:
        """(how many connected parts there are, the part of each run)."""
        rows, width = self.shape[1], self.shape[2] + 2
        first, last = self.row * width + self.start, self.row * width + self.stop  # both grow from run to run
        edges = []
        for z, y in _NEXT_ROWS:
            inside = (self.row % rows + y >= 0) & (self.row % rows + y < rows)
            own = np.flatnonzero(inside)
            row = (self.row[own] + z * rows + y) * width
            low = np.searchsorted(last, row + self.start[own])  # the first that does not end before it begins
            high = np.searchsorted(first, row + self.stop[own], side="right")  # behind the last that begins in time
            number = np.maximum(high - low, 0)
            offsets = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
            edges.append((np.repeat(own, number), np.repeat(low, number) + offsets))
        one, two = (np.concatenate(side) for side in zip(*edges, strict=True))
        graph = coo_array((np.ones(len(one), bool), (one, two)), shape=(len(self.row), len(self.row)))
        number_of_parts, part = connected_components(graph, directed=False)
        return int(number_of_parts), part

    def count(self, other: np.ndarray) -> np.ndarray:
        """How many voxels of `other` lie in each run."""
        begin = self.row * (self.shape[2] + 1)
        borders = np.stack([begin + self.start, begin + self.stop], axis=1).ravel()
        return np.add.reduceat(_closed(other).view(np.uint8), borders, dtype=np.int64)[::2]


def _closed(mask: np.ndarray) -> np.ndarray:
    """The mask in one line, a False behind each of its rows."""
    return np.pad(mask, ((0, 0), (0, 0), (0, 1))).ravel()
