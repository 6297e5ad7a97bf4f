"""The number to stay above: an interval of Hounsfield units, the best one on the training cases, and nothing else.

A network that does not beat it has learned nothing from shape or place.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from covidseg.data.store import PreparedCase
from covidseg.evaluation.structures import Structure

_EDGES = np.arange(-1024, 512 + 1, 16)  # HU; an infection lies below, bone above


@dataclass(frozen=True)
class ThresholdBaseline:
    """Calls a voxel foreground when `low` <= HU < `high`."""

    low: int
    high: int

    @classmethod
    def fit(cls, cases: Iterable[PreparedCase], structure: Structure) -> Self:
        """The interval of the highest mean Dice over `cases`, cases without the structure left out.

        All intervals between multiples of 16 HU are tried, from two cumulative histograms per case.
        """
        total, used = np.zeros((len(_EDGES), len(_EDGES))), 0
        for case in cases:
            foreground = structure.in_reference(case.mask)
            if foreground.any():
                total += _dice_of_intervals(np.asarray(case.image), foreground)
                used += 1
        if not used:
            raise ValueError("no case has the structure")
        low, high = np.unravel_index(np.argmax(total), total.shape)
        return cls(int(_EDGES[low]), int(_EDGES[high]))

    def segment(self, case: PreparedCase) -> np.ndarray:
        """uint8 class map (0, 1) of a prepared case on the scan's own grid."""
        inside = (case.image >= self.low) & (case.image < self.high)
        return case.grid.scores_to_native(np.stack([~inside, inside]).astype(np.float32))


def _dice_of_intervals(image: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """[i, j]: Dice of `_EDGES[i]` <= HU < `_EDGES[j]` against `foreground`; 0 where j <= i."""
    bins = (*_EDGES, np.inf)
    below = np.concatenate([[0], np.cumsum(np.histogram(image, bins)[0])])[:-1]
    below_true = np.concatenate([[0], np.cumsum(np.histogram(image[foreground], bins)[0])])[:-1]
    predicted = below[None, :] - below[:, None]
    overlap = below_true[None, :] - below_true[:, None]
    dice = 2 * overlap / (predicted.clip(min=0) + foreground.sum())
    return np.where(predicted > 0, dice, 0.0)
