"""How a run is doing: curves, status.json and the line in the terminal."""

import math
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from covidseg.runs.folder import RunFolder
from covidseg.training.time_shares import TimeShares

_STATUS_SECONDS, _LINE_SECONDS = 2.0, 30.0  # between two updates of status.json, of the line in a log file


class EvaluationReport:
    """Called with the id of each case that was scored: says how many of them there are, in status.json and in a line.

    Only the first process says it, of the cases of all.
    """

    def __init__(self, folder: RunFolder, cases: int, show: bool, also: Callable[[str], None], processes: int = 1):
        self.folder, self.cases, self.show, self.also, self.processes = folder, cases, show, also, processes
        self.done = 0
        self._status_at, self._line_at = -math.inf, time.monotonic()

    def __call__(self, case: str) -> None:
        self.also(case)
        self.done = min(self.done + self.processes, self.cases)  # the others are about as far
        now = time.monotonic()
        if now - self._status_at > _STATUS_SECONDS or self.done == self.cases:
            self._status_at = now
            self.folder.write_status("running", evaluated=[self.done, self.cases])
        if self.show and now - self._line_at > _LINE_SECONDS:
            self._line_at = now
            print(f"evaluating: {self.done} of {self.cases} cases", flush=True)


class ProgressReporter(Callback):
    """Curves, `status.json` and a progress line: loss, learning rate, patches/s, steps done, time left.

    Patches are those of all processes; validation does not count as training time. Only the first process acts.
    """

    def __init__(
        self, folder: RunFolder, max_steps: int, batch_size: int, log_every: int, show: bool, times: TimeShares
    ):
        self.folder, self.max_steps, self.log_every, self.times = folder, max_steps, log_every, times
        self.batch_size, self.show = batch_size, show
        self.seconds, self.patches = 0.0, 0  # of training, over all starts of the run
        self._collected: dict[str, list[torch.Tensor]] = {}  # since the last report: the loss and its parts
        self._window, self._rate = (0.0, 0), math.nan
        self._since = self._status_at = self._line_at = -math.inf
        self._bar: Progress | None = None

    def state_dict(self) -> dict[str, Any]:
        since = {name: torch.stack(values).tolist() for name, values in self._collected.items()}
        return {"seconds": self.seconds, "patches": self.patches, "window": list(self._window), "collected": since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds, self.patches = state["seconds"], state["patches"]
        self._window = tuple(state.get("window", (self.seconds, self.patches)))
        since = state.get("collected") or {"loss": state.get("losses", [])}  # older checkpoints hold the loss alone
        self._collected = {name: [torch.tensor(value) for value in values] for name, values in since.items() if values}

    @property
    def patches_per_second(self) -> float:
        return self.patches / self.seconds if self.seconds else 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, values in self._collected.items():  # those of a checkpoint are on the CPU
            self._collected[name] = [value.to(pl_module.device) for value in values]
        if not trainer.is_global_zero:
            return
        self.folder.write_status("running", step=trainer.global_step, max_steps=self.max_steps)
        if self.show:
            texts = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
            self._bar = Progress(texts[0], BarColumn(), MofNCompleteColumn(), texts[1], TimeRemainingColumn())
            self._bar.add_task("training", total=self.max_steps, completed=trainer.global_step, note="")
            if self._bar.console.is_terminal:
                self._bar.start()
        self._since = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int):
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]  # after the step it is already the next one's

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The gradient's norm of the steps that are reported, before any clipping."""
        step = trainer.global_step + 1
        if trainer.is_global_zero and (step % self.log_every == 0 or step == self.max_steps):
            gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
            self._collected["gradient_norm"] = [torch.nn.utils.get_total_norm(gradients)]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        now, step = time.perf_counter(), trainer.global_step
        self.seconds, self._since = self.seconds + now - self._since, now
        self.patches += self.batch_size * trainer.world_size
        parts = trainer.accumulate_grad_batches
        for name, value in outputs.items():
            whole = value.detach() * parts if name == "loss" else value.detach()  # Lightning divided the loss by it
            self._collected.setdefault(name, []).append(whole)
        if batch["part"] + 1 < parts:
            return
        if step % self.log_every == 0 or step == self.max_steps:
            self._report(trainer, step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._describe("validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._describe("training")
        self._since = time.perf_counter()
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self._log(trainer, scores)
        if trainer.is_global_zero and self.show and "val/dice" in scores:
            self._say(f"step {trainer.global_step}: validation Dice {scores['val/dice']:.3f}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._collected:  # stopped early, between two reports
            self._report(trainer, trainer.global_step)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _report(self, trainer: pl.Trainer, step: int) -> None:
        # on the CPU: the same bits after a resume
        means = {f"train/{name}": float(torch.stack(own).cpu().mean()) for name, own in self._collected.items()}
        loss = means["train/loss"]
        seconds, patches = self.seconds - self._window[0], self.patches - self._window[1]
        rate = patches / seconds
        self._collected, self._window = {}, (self.seconds, self.patches)
        self._log(trainer, {**means, "train/lr": self._rate, "train/patches_per_second": rate})
        now = time.monotonic()
        if now - self._status_at > _STATUS_SECONDS or step == self.max_steps:
            self._status_at = now
            known = {"patches_per_second": round(rate, 2), "seconds": self.times.seconds}
            self.folder.write_status("running", step=step, max_steps=self.max_steps, **known)
        if self._bar:
            note = f"loss {loss:.3f}, {rate:.1f} patches/s"
            self._bar.update(self._bar.task_ids[0], completed=step, note=note)
            if not self._bar.console.is_terminal and (now - self._line_at > _LINE_SECONDS or step == self.max_steps):
                self._line_at = now
                per_step = self.batch_size * trainer.world_size * trainer.accumulate_grad_batches
                left = (self.max_steps - step) * per_step / rate
                self._say(f"step {step}/{self.max_steps}, {note}, {left / 60:.0f} min left")

    def _log(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        # Not through `self.log`: its step counter is off by one after a resume in the middle of an epoch.
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _describe(self, text: str) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=text)

    def _say(self, line: str) -> None:
        if self._bar and self._bar.console.is_terminal:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, flush=True)
