"""What a run's validations and its evaluation will compute, from the cases that lie prepared."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

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

    @classmethod
    def of(cls, cfg: DictConfig) -> "Scoring | None":
        """None where the configuration is not one whose windows can be counted: its own run says what is wrong."""
        try:
            return cls(
                prepared=Path(str(cfg.paths.data)) / "prepared",
                name=str(cfg.data.name),
                fold=cfg.fold,
                choosing=cfg.training.evaluate == "best",
                roi_zyx=tuple(int(n) for n in cfg.inference.roi_zyx),
                overlap=float(cfg.inference.overlap),
                validations=cfg.training.max_steps // cfg.training.validate_every,
            )
        except (AttributeError, TypeError, ValueError, ZeroDivisionError):
            return None

    def windows(self) -> int | None:
        """Windows of all validations and of the evaluation; None where no such data set is prepared yet."""
        folders = sorted(self.prepared.glob(f"{self.name}-*/dataset.json"), key=lambda file: file.stat().st_mtime)
        try:
            dataset = PreparedDataset.open(folders[-1].parent)
            split = dataset.split(self.fold, self.choosing)
            counts = {side: sum(map(self._of_case(dataset), getattr(split, side))) for side in vars(split)}
        except (BadInput, IndexError):
            return None
        return counts["validation"] * self.validations + counts["test"] + counts["external"]

    def _of_case(self, dataset: PreparedDataset):
        return lambda case: count_windows(dataset.cases[case].grid.shape_zyx, self.roi_zyx, self.overlap)
