"""What happens between two training steps: checkpoints, stopping together, a look at the loss."""

import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from covidseg.runs.checkpoints import BEST, LAST
from covidseg.system.errors import BadInput, Interrupted
from covidseg.system.signals import StopRequest
from covidseg.training.agreement import LaterAgreement, agreed

_NOT_FINITE = 1000  # among the words that processes agree on; larger than any signal number
_SHARE, _WORTH_SPARING = 0.01, 0.5  # of the time for checkpoints; seconds for one from which on that is looked at
_GO_ON = "the same command goes on from there"


class LossNotFinite(BadInput):
    """Raised on all processes at once, whichever of them met the loss."""


class SaveAndStop(Callback):
    """Saves, and stops where asked to, between two steps: the one place where all processes are at the same point.

    `last.ckpt` is written every `checkpoint_every` steps, unless that would take more than a hundredth of the time,
    before and after each validation, and when the run stops;
    `best.ckpt` (weights only) when a validation's `val/dice` is the highest so far. A loss that is not finite ends the
    run on all processes, naming the cases, before anything of it is saved.
    """

    def __init__(self, folder: Path, checkpoint_every: int, validate_every: int, stop: StopRequest):
        self.folder, self.stop = folder, stop
        self.checkpoint_every, self.validate_every = checkpoint_every, validate_every
        self.best: float | None = None
        self.best_step: int | None = None
        self.newest: float | None = None
        self.newest_step: int | None = None
        self._writing, self._written = 0.0, 0.0  # seconds that the last writing took, and when it ended
        self._losses: deque[_Loss] = deque()
        self._bad: list[str] = []  # cases of the first loss that was not finite, here
        self._agreement = LaterAgreement()

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "best_step": self.best_step,
            "newest": self.newest,
            "newest_step": self.newest_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step = state["best"], state["best_step"]
        self.newest, self.newest_step = state.get("newest"), state.get("newest_step")

    def validated(self, checkpoint: str) -> dict[str, Any] | None:
        """`val/dice` and the step of the `best` validation, or of the `last` one; None where there was none."""
        dice, step = (self.best, self.best_step) if checkpoint == "best" else (self.newest, self.newest_step)
        return None if dice is None else {"dice": dice, "step": step}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.install()  # over Lightning's own handler, which waits for other processes inside the handler

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        if batch["part"]:
            return  # gradients of this step's first part are held: no place to stop or to save
        step = trainer.global_step
        around_validation = step % self.validate_every == 0 or (step + 1) % self.validate_every == 0
        due = around_validation or (step % self.checkpoint_every == 0 and self._is_cheap(trainer))
        self._decide(trainer, save=step > 0 and due)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(_Loss(outputs["loss"], batch["case"]))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._agree(trainer, lag=0)  # only on the loss: the network may give no finite logits any more

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if word := agreed(self.stop.signum, pl_module.device):  # cases were skipped: nothing of it may count
            raise Interrupted(
                "run", f"stopped by signal {word} in the validation of step {trainer.global_step}", _GO_ON, word
            )
        score = trainer.callback_metrics.get("val/dice")
        if score is None:
            return
        self.newest, self.newest_step = float(score), trainer.global_step
        if self.best is None or self.newest > self.best:
            self.best, self.best_step = self.newest, self.newest_step
            trainer.save_checkpoint(self.folder / BEST, weights_only=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._decide(trainer, save=True)

    def _is_cheap(self, trainer: pl.Trainer) -> bool:
        """Whether the first process finds that writing takes little of the time since it last wrote."""
        since = time.monotonic() - self._written
        cheap = self._writing < _WORTH_SPARING or self._writing < _SHARE * since
        return bool(agreed(int(cheap and trainer.is_global_zero), trainer.strategy.root_device))

    def _save_last(self, trainer: pl.Trainer) -> None:
        began = time.monotonic()
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        self._written = time.monotonic()
        self._writing = self._written - began

    def _decide(self, trainer: pl.Trainer, save: bool) -> None:
        step = trainer.global_step
        word = self._agree(trainer, lag=0 if save or trainer.strategy.root_device.type == "cpu" else 1)
        if save or (word and step > 0):
            self._save_last(trainer)
        if word:
            raise Interrupted("run", f"stopped by signal {word} at step {step}", _GO_ON, word)

    def _agree(self, trainer: pl.Trainer, lag: int) -> int:
        """The signal that any process got, 0 for none; raises where any met a loss that is not finite.

        `lag`: newest losses that are not looked at yet, and how many calls later the others' word is known. A GPU's
        newest loss, and what NCCL makes of the words, would have to be waited for.
        """
        while len(self._losses) > lag and not self._bad:
            loss = self._losses.popleft()
            if not math.isfinite(loss.value()):
                self._bad = loss.cases
        word = _NOT_FINITE if self._bad else self.stop.signum
        decide = self._agreement.ask if lag else self._agreement.settle
        word = decide(word, trainer.strategy.root_device)
        if word == _NOT_FINITE:
            cases = _of_all_processes(self._bad)
            raise LossNotFinite(
                "training",
                f"the loss is not finite after step {trainer.global_step} (cases {', '.join(cases)})",
                "look at these cases, lower optimizer.lr, or set trainer.precision=32-true",
            )
        return word


class _Loss:
    """A step's loss on its way to the CPU; asking for the value of the step before the newest does not stall a GPU."""

    def __init__(self, loss: torch.Tensor, cases: list[str]):
        self.cases = cases
        self._value, self._copied = loss.detach(), None
        if loss.is_cuda:
            self._value = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(loss.detach(), non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def value(self) -> float:
        if self._copied:
            self._copied.synchronize()
        return float(self._value)


def _of_all_processes(cases: list[str]) -> list[str]:
    shares: list[Any] = [cases]
    if dist.is_initialized():
        shares = [None] * dist.get_world_size()
        dist.all_gather_object(shares, cases)
    return sorted({case for share in shares for case in share})
