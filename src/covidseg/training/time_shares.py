"""Where the time of a run goes, from what Lightning tells its profiler and its callbacks."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import Profiler

from covidseg.runs.timing import PARTS
from covidseg.system.clock import age

# What Lightning tells its profiler of, by the last part of the name.
_ACTIONS = {"train_dataloader_next": "loader", "batch_to_device": "copy", "save_checkpoint": "checkpoint"}


class TimeShares(Callback):
    """Seconds of this process by `PARTS`, over all starts of the run.

    Those of the loader are what the host waited for a batch, and so at most what the device did. The step is what is
    left of the training. `preparing`: what this start took to find or make its data. `watch` is to be the Trainer's
    profiler; where another one was chosen, that one says where the time goes, and all of it counts here as the step.
    """

    def __init__(self, preparing: float = 0.0) -> None:
        self.watch = _Watch()
        self._before = dict.fromkeys(PARTS, 0.0)  # of earlier starts
        self._starting, self._preparing, self._evaluating = 0.0, preparing, 0.0
        self._training: float | None = None  # when it began
        self._trained = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = {part: float(state["seconds"].get(part, 0.0)) for part in PARTS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._starting, self._training = age() - self._preparing, time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.begin("validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.end("validation")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close(None)

    def evaluated(self, seconds: float) -> None:
        """Note how long the evaluation took, once the training is over."""
        self._evaluating = seconds

    @property
    def seconds(self) -> dict[str, float]:
        """By `PARTS`, rounded; of a training that goes on what it took so far."""
        self._close(time.perf_counter())
        watched = self.watch.seconds
        around = {"starting": self._starting, "preparing": self._preparing, "evaluating": self._evaluating}
        found = {**around, **watched}
        found["step"] = max(0.0, self._trained - sum(watched.values()))
        return {part: round(self._before[part] + found[part], 3) for part in PARTS}

    def _close(self, again: float | None) -> None:
        """Count the training up to now; it goes on from `again`, or is over."""
        if self._training is not None:
            self._trained += time.perf_counter() - self._training
            self._training = again


class _Watch(Profiler):
    """Adds up the time of some of what Lightning tells a profiler of; what happens inside one of them is its."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys((*_ACTIONS.values(), "validation"), 0.0)
        self._open: tuple[str, float] | None = None

    def start(self, action_name: str) -> None:
        if part := _ACTIONS.get(action_name.rpartition(".")[2]):
            self.begin(part)

    def stop(self, action_name: str) -> None:
        if part := _ACTIONS.get(action_name.rpartition(".")[2]):
            self.end(part)

    def begin(self, part: str) -> None:
        if self._open is None:
            self._open = part, time.perf_counter()

    def end(self, part: str) -> None:
        if self._open is not None and self._open[0] == part:
            self.seconds[part] += time.perf_counter() - self._open[1]
            self._open = None
