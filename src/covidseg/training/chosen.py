"""Callbacks that a user chooses (conf/callbacks). A run that was stopped and goes on ends with the same bits, too."""

from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning import callbacks
from torch import Tensor
from torch.nn import Module


class EarlyStopping(callbacks.EarlyStopping):
    """Ends the training after `patience` validations in a row without a `val/dice` higher by `min_delta`."""

    def __init__(self, patience: int = 5, min_delta: float = 0.0):
        if patience < 1 or min_delta < 0:
            raise ValueError(f"patience={patience}, min_delta={min_delta}: at least 1, and at least 0")
        super().__init__("val/dice", min_delta=min_delta, patience=patience, mode="max")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:  # it had stopped already, and its evaluation did not end
            trainer.should_stop = True


class LearningRateMonitor(callbacks.LearningRateMonitor):
    """Lightning's, once a step; `lr-<optimiser>` of each group of parameters."""

    def __init__(self, log_momentum: bool = False, log_weight_decay: bool = False):
        super().__init__("step", log_momentum, log_weight_decay)


class WeightAveraging(pl.Callback):
    """Keeps an exponential moving average of all weights and statistics; validation and the last checkpoint get it.

    average <- d average + (1 - d) weights after each step, d = min(`decay`, (1 + t) / (10 + t)). Checkpoints before the
    last one hold the weights that training goes on with, and the average beside them.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay} is not between 0 and 1")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.aside: dict[str, Tensor] = {}  # the weights themselves, while the network has the average

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "aside": self.aside}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average, self.aside = state["average"], state["aside"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        held = {name: value.to(pl_module.device) for name, value in self.average.items()}
        self.average = held or _copies(pl_module)

    @torch.no_grad()
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if self.aside:
            _put(self.aside, pl_module)
            self.aside = {}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch["part"] + 1 < trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in _floats(pl_module).items():
            self.average[name].lerp_(value, share)

    @torch.no_grad()
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._give_average(pl_module)

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._give_average(pl_module)

    def _give_average(self, pl_module: pl.LightningModule) -> None:
        if self.aside or not self.average:
            return
        self.aside = _copies(pl_module)
        if dist.is_initialized():  # statistics of batch norm differ between processes
            for value in self.average.values():
                dist.broadcast(value, 0)
        _put(self.average, pl_module)


def _floats(module: pl.LightningModule) -> dict[str, Tensor]:
    return {
        name: value for name, value in cast(Module, module.network).state_dict().items() if value.is_floating_point()
    }


def _copies(module: pl.LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in _floats(module).items()}


def _put(values: dict[str, Tensor], module: pl.LightningModule) -> None:
    for name, value in _floats(module).items():
        value.copy_(values[name])
