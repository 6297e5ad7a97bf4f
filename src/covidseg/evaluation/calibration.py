"""Whether a network's probabilities mean what they say: of the voxels it gives 0.8, are eight in ten of it?

Kept for the few cases that figures show (`runs.slices.shown_cases`), on the prepared grid, near the structure: over a
whole scan nearly all voxels are surely background, and any network looks calibrated (Mehrtash et al., IEEE Trans. Med.
Imaging 2020, 39:3868, count in a box around the structure for that reason).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from covidseg.scans.geometry import union_box
from covidseg.system.errors import BadInput
from covidseg.system.files import read_json, write_json
from covidseg.system.readback import NUMBER, mismatch

FOLDER = "calibration"  # of a run
BINS = 15
MARGIN_MM = 10.0  # around the reference and the prediction
_SHAPE = {"voxels": [int], "probability": [NUMBER], "present": [int]}


@dataclass(frozen=True)
class Reliability:
    """Voxels by predicted probability, in `BINS` equal bins of [0, 1].

    `voxels`: how many; `probability`: the sum of what was predicted for them; `present`: how many are of the structure.
    """

    voxels: tuple[int, ...]
    probability: tuple[float, ...]
    present: tuple[int, ...]

    @classmethod
    def of(cls, probability: np.ndarray, reference: np.ndarray, spacing_zyx: Sequence[float]) -> Self | None:
        """From probabilities and a boolean reference (z, y, x), near the structure; None where neither shows it."""
        margin = math.ceil(MARGIN_MM / min(spacing_zyx))
        box = union_box(reference, probability >= 0.5, margin=margin)
        near, truth = probability[box].ravel().astype(float), reference[box].ravel()
        if not near.size:
            return None
        where = np.minimum((near * BINS).astype(int), BINS - 1)
        sums = [np.bincount(where, weights, BINS) for weights in (None, near, truth)]
        return cls(_whole(sums[0]), tuple(map(float, sums[1])), _whole(sums[2]))

    @classmethod
    def together(cls, parts: Iterable[Self]) -> Self | None:
        """Of all voxels of several cases; None without any."""
        found = list(parts)
        if not found:
            return None
        columns = zip(*((one.voxels, one.probability, one.present) for one in found), strict=True)
        voxels, probability, present = (np.sum(column, axis=0) for column in columns)
        return cls(_whole(voxels), tuple(map(float, probability)), _whole(present))

    @property
    def error(self) -> float:
        """Expected calibration error: |predicted - found share|, mean over voxels (Guo et al., ICML 2017)."""
        return float(np.abs(np.subtract(self.probability, self.present)).sum() / np.sum(self.voxels))

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean probability, share that is of the structure) of the bins that hold voxels."""
        filled = np.array(self.voxels) > 0
        voxels = np.array(self.voxels)[filled]
        return np.array(self.probability)[filled] / voxels, np.array(self.present)[filled] / voxels

    def save(self, run: Path | str, case: str, structure: str) -> None:
        """Write into a run's folder."""
        write_json(Path(run) / FOLDER / f"{case}_{structure}.json", asdict(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote. Raises `BadInput` for anything else."""
        try:
            content = read_json(path)
            if wrong := mismatch(content, _SHAPE):
                raise ValueError(wrong)
            one = cls(tuple(content["voxels"]), tuple(content["probability"]), tuple(content["present"]))
            one._require_sense()
        except (OSError, ValueError) as error:
            raise BadInput(path.name, f"is no calibration that a run keeps ({error})", "remove it") from error
        return one

    def _require_sense(self) -> None:
        if {len(self.voxels), len(self.probability), len(self.present)} != {BINS} or not sum(self.voxels):
            raise ValueError("its bins are others")
        for voxels, probability, present in zip(self.voxels, self.probability, self.present, strict=True):
            if not (0 <= present <= voxels and 0 <= probability <= voxels * (1 + 1e-9)):
                raise ValueError("its counts contradict each other")


def _whole(values: np.ndarray) -> tuple[int, ...]:
    return tuple(round(value) for value in values.tolist())
