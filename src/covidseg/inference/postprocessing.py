"""From a probability to a mask: a threshold, and the smallest piece that is kept; chosen on validation cases alone.

A run keeps what was chosen for it in `postprocessing.json`. It belongs to one checkpoint and one setting of the sliding
window, so what was chosen for others is refused.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from covidseg.scans.geometry import union_box
from covidseg.system.errors import BadInput
from covidseg.system.files import read_json, write_json
from covidseg.system.readback import NUMBER, mismatch

if TYPE_CHECKING:
    from covidseg.data.store import PreparedCase
    from covidseg.inference.segmenter import Segmenter

FILE = "postprocessing.json"
THRESHOLDS = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8)  # the usual one first: of equals the first is kept
SMALLEST_ML = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_TOUCHING = np.ones((3, 3, 3))  # over faces, edges or corners, as lesions are counted (`evaluation.lesions`)
_SHAPE = {
    "format": {1},
    "structure": str,
    "threshold": NUMBER,
    "smallest_ml": NUMBER,
    "checkpoint_sha256": str,
    "inference": dict,
    "data": str,
    "cases": [str],
    "dice": {"before": NUMBER, "after": NUMBER},
}


@dataclass(frozen=True)
class Postprocessing:
    """Voxels above `threshold`, without the connected pieces below `smallest_ml`."""

    threshold: float = 0.5
    smallest_ml: float = 0.0

    def mask(self, probability: np.ndarray, spacing_zyx: Sequence[float]) -> np.ndarray:
        """Boolean (z, y, x) of a probability of the same shape."""
        mask = probability > self.threshold
        if self.smallest_ml:
            box, pieces, sizes = _pieces(mask)
            kept = np.concatenate([[False], sizes * _voxel_ml(spacing_zyx) >= self.smallest_ml])
            mask[box] = kept[pieces]
        return mask


@dataclass(frozen=True)
class Choice:
    """What was chosen, on which cases, and the mean Dice of them without and with it."""

    postprocessing: Postprocessing
    structure: str
    cases: tuple[str, ...]
    before: float
    after: float

    def save(self, run: Path | str, segmenter: "Segmenter", data: str) -> Path:
        """Write into the run's folder; `data` names the prepared data set."""
        path = Path(run) / FILE
        content = {
            "format": 1,
            "structure": self.structure,
            **asdict(self.postprocessing),
            "checkpoint_sha256": segmenter.checkpoint_sha256,
            "inference": segmenter.inferer.settings,
            "data": data,
            "cases": list(self.cases),
            "dice": {"before": round(self.before, 4), "after": round(self.after, 4)},
        }
        write_json(path, content)
        return path


def chosen_for(run: Path | str, name: str, checkpoint_sha256: str, settings: Mapping[str, Any]) -> Postprocessing:
    """What the `run` folder keeps for these weights and this sliding window.

    Raises `BadInput` where it keeps nothing, something damaged, or what was chosen for others.
    """
    path, again = Path(run) / FILE, f"python src/evaluate.py run={name} choose_postprocessing=true"
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise BadInput(name, "has no postprocessing chosen", again) from error
    except (OSError, ValueError) as error:
        raise BadInput(path.name, "is damaged", again) from error
    if wrong := mismatch(content, _SHAPE):
        raise BadInput(path.name, f"is not what a choice of postprocessing writes ({wrong})", again)
    if not 0 < content["threshold"] < 1 or not 0 <= content["smallest_ml"] < math.inf:
        raise BadInput(path.name, "holds a threshold or a volume that cannot be", again)
    if content["checkpoint_sha256"] != checkpoint_sha256:
        raise BadInput(path.name, "was chosen for other weights of this run", again)
    if content["inference"] != dict(settings):
        was = ", ".join(f"{key}={value}" for key, value in content["inference"].items())
        raise BadInput(path.name, f"was chosen for another sliding window ({was})", f"use that one, or {again}")
    return Postprocessing(float(content["threshold"]), float(content["smallest_ml"]))


def choose(
    segmenter: "Segmenter", cases: Iterable["PreparedCase"], progress: Callable[[str], None] = lambda case: None
) -> Choice:
    """The threshold and smallest piece with the highest mean Dice over validation cases, on the scans' own grids.

    An empty mask of a case without the structure counts as 1: a setting that makes it empty must not lose by that.
    Raises `BadInput` for a task of several structures, or without a case to choose by.
    """
    structures = list(segmenter.task.structures.items())
    if len(structures) > 1:
        wrong = f"task {segmenter.task.name} has {len(structures)} structures, and a threshold is of one"
        raise BadInput("choose_postprocessing", wrong, "train a run of task=lesion or task=lung")
    ((name, part),) = structures
    totals: dict[Postprocessing, float] = {}
    used = []
    for case in cases:
        if name not in case.annotated:
            continue
        probability = case.grid.probabilities_to_native(segmenter.scores(case.image), part.channels)
        reference = part.in_reference(case.reference())
        for setting, dice in _dice_of_settings(probability, reference, case.grid.native.spacing_zyx):
            totals[setting] = totals.get(setting, 0.0) + dice
        used.append(case.id)
        progress(case.id)
    if not used:
        wrong = f"no validation case of {segmenter.name} has {name} annotated"
        raise BadInput("choose_postprocessing", wrong, "train it with data.splits.validation_fraction")
    best = max(totals, key=lambda setting: round(totals[setting] / len(used), 6))  # the first of equals
    before, after = (totals[setting] / len(used) for setting in (Postprocessing(), best))
    return Choice(best, name, tuple(used), before, after)


def _dice_of_settings(
    probability: np.ndarray, reference: np.ndarray, spacing_zyx: Sequence[float]
) -> Iterator[tuple[Postprocessing, float]]:
    """Dice of a case under every setting; its pieces are found once for each threshold."""
    voxel_ml, total = _voxel_ml(spacing_zyx), int(reference.sum())
    for threshold in THRESHOLDS:
        box, pieces, sizes = _pieces(probability > threshold)
        hits = np.bincount(pieces[reference[box]], minlength=len(sizes) + 1)[1:]
        for smallest in SMALLEST_ML:
            kept = sizes * voxel_ml >= smallest
            both = int(sizes[kept].sum()) + total
            yield Postprocessing(threshold, smallest), 2 * int(hits[kept].sum()) / both if both else 1.0


def _pieces(mask: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray]:
    """(box of the mask, number of the connected piece from 1 at each of its voxels, voxels of each piece)."""
    box = union_box(mask)
    pieces, count = ndimage.label(mask[box], _TOUCHING)
    return box, pieces, np.bincount(pieces.ravel(), minlength=count + 1)[1:]


def _voxel_ml(spacing_zyx: Sequence[float]) -> float:
    return math.prod(spacing_zyx) / 1000
