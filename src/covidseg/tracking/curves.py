"""metrics.csv: the curves of a run in its own folder, one row per logged step, continued by a resumed run."""

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from covidseg.system.files import write_csv
from covidseg.tracking.guard import Guarded, guarded

FLUSH_SECONDS = 10.0


class CurvesCSV(Guarded, Logger):
    """Lightning logger that keeps `metrics.csv`: columns `step`, then one per metric in order of appearance.

    What training and validation log at the same step shares a row. The file is replaced whole, at most every ten
    seconds and before every checkpoint (`save_now`), so that it is never torn and never behind the checkpoint a run
    resumes from. A resumed run drops the rows after the first step that it logs itself: that work was lost.
    """

    what = "metrics.csv"

    def __init__(self, run_dir: Path | str):
        super().__init__()
        self._path = Path(run_dir) / "metrics.csv"
        self._rows: dict[int, dict[str, float]] = {}
        self._columns: list[str] = ["step"]
        self._opened = False
        self._saved_at = 0.0

    @property
    def name(self) -> str:
        return "curves"

    @property
    def version(self) -> str:
        return ""

    @property
    def experiment(self) -> Self:
        """What a callback written for Lightning asks a logger for."""
        return self

    @property
    def save_dir(self) -> str:
        return str(self._path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml stands beside the curves."""

    @rank_zero_only
    @guarded
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = int(metrics.get("step", 0) if step is None else step)
        if not self._opened:
            self._continue_from(step)
        self._rows.setdefault(step, {"step": step}).update({name: float(value) for name, value in metrics.items()})
        self._columns += [name for name in metrics if name not in self._columns]
        if time.monotonic() - self._saved_at > FLUSH_SECONDS:
            self.save_now()

    @rank_zero_only
    @guarded
    def save_now(self) -> None:
        """Bring the file up to date; called before a checkpoint is written."""
        if self._opened:
            write_csv(self._path, (self._rows[step] for step in sorted(self._rows)), self._columns)
            self._saved_at = time.monotonic()

    def finalize(self, status: str) -> None:
        self.save_now()

    def _continue_from(self, step: int) -> None:
        self._opened = True
        if not self._path.exists():
            return
        with open(self._path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            self._columns += [name for name in reader.fieldnames or () if name not in self._columns]
            for row in reader:
                past = int(row.pop("step"))
                if past <= step:
                    self._rows[past] = {"step": past} | {name: float(value) for name, value in row.items() if value}
