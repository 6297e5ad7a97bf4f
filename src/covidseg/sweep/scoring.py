"""What a run's validations and its evaluation will compute, from the cases that lie prepared."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from covidseg.data.prepare.splits import chooses
from covidseg.data.store import PreparedDataset
from covidseg.inference.tiling import count_windows
from covidseg.system.errors import BadInput


@dataclass(frozen=True)
class Scoring:
    """The part of a run's configuration that says how much is scored."""

    prepared: Path  # the folder of prepared data sets
    name: str  # of the data set
    fold: int | str | None
    choosing: bool
    roi_zyx: tuple[int, ...]
    overlap: float
    validations: int
    on_validation: bool = False  # scored there instead of on the held-out sets

    @classmethod
    def of(cls, cfg: DictConfig) -> "Scoring | None":
        """None where the configuration is not one whose windows can be counted: its own run says what is wrong."""
        try:
            return cls(
                prepared=Path(str(cfg.paths.data)) / "prepared",
                name=str(cfg.data.name),
                fold=cfg.fold,
                choosing=chooses(cfg.training),
                on_validation=cfg.training.score_on == "validation",
                roi_zyx=tuple(int(n) for n in cfg.inference.roi_zyx),
                overlap=float(cfg.inference.overlap),
                validations=cfg.training.max_steps // cfg.training.validate_every,
            )
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
            return None

    def windows(self) -> int | None:
        """Windows of all validations and of the evaluation; None where no such data set is prepared yet."""
        shapes = _shapes(self.prepared, self.name, self.fold, self.choosing)
        if shapes is None:
            return None
        validation, held_out = (sum(self._windows_of(shape) for shape in part) for part in shapes)
        return validation * self.validations + (validation if self.on_validation else held_out)

    def _windows_of(self, shape_zyx: Sequence[int]) -> int:
        return count_windows(shape_zyx, self.roi_zyx, self.overlap)


@cache
def _shapes(
    prepared: Path, name: str, fold: int | str | None, choosing: bool
) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]] | None:
    """Voxels of the validation cases, and of those the run is scored on, read once for all rows of a sweep."""
    folders = sorted(prepared.glob(f"{name}-*/dataset.json"), key=lambda file: file.stat().st_mtime)
    try:
        dataset = PreparedDataset.open(folders[-1].parent)
        split = dataset.split(fold, choosing)
        sides = split.validation, [*split.test, *split.external]
        validation, scored = ([dataset.cases[case].grid.shape_zyx for case in side] for side in sides)
    except (BadInput, IndexError):
        return None
    return validation, scored
