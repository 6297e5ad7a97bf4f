"""What is trained: a network, a loss, an optimiser, an inferer and metrics. No architecture, no file, no plot."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from covidseg.data.store import PreparedCase
from covidseg.data.train.augment import Augment
from covidseg.data.train.datamodule import CaseSet
from covidseg.data.train.loader import Batch
from covidseg.evaluation.cases import evaluate_cases
from covidseg.evaluation.metrics import METRICS
from covidseg.evaluation.results import summarise_sets
from covidseg.evaluation.scores import CaseScores
from covidseg.evaluation.structures import Task
from covidseg.inference.window import WindowInferer, normalise, segment_case
from covidseg.nets.network import laid_out
from covidseg.training.initial import hold_statistics

_AUGMENTATION, _NETWORK = 3, 4  # streams of random numbers; 1 and 2 are the loader's
_SLAB = 64  # slices that a validation's loss is taken of at once: the depth of the paper's patches


class SegmentationTask(pl.LightningModule):
    """Trains `network` on patches and scores it on whole cases, on the scans' own grids.

    Every random number of a step follows from (seed, step, rank), so that nothing about them has to be saved; a further
    part of an accumulated step counts as a further rank. `window`:
    HU that the network sees as 0 and 1. `optimizer` makes the optimiser of parameters; `schedule` is its learning rate
    at a step as a factor. `stopping` tells that the run was asked to stop: the rest of a validation is then skipped.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[int], float],
        augment: Augment,
        task: Task,
        window: Sequence[float],
        inferer: WindowInferer,
        seed: int,
        channels_last: bool = False,
        stopping: Callable[[], bool] = lambda: False,
    ):
        super().__init__()
        self.memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.loss, self.optimizer, self.schedule = loss, optimizer, schedule
        self.augment, self.task, self.window, self.inferer = augment, task, tuple(window), inferer
        self.seed, self.stopping = seed, stopping
        self.partly_frozen = not all(parameter.requires_grad for parameter in network.parameters())
        self.validation_scores = CaseScores()  # here, so that Lightning keeps it on the module's device
        self._validation_losses: list[float] = []  # of this process's cases

    def forward(self, image: Tensor) -> Tensor:
        """Logits of normalised images."""
        return self.network(image)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch["step"] != self.global_step:
            raise RuntimeError(f"the loader gave the batch of step {batch['step']} in step {self.global_step}")
        torch.manual_seed(self._seed(_NETWORK, batch))  # dropout
        if self.partly_frozen:
            hold_statistics(self.network)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss, and its `parts` where it names them."""
        rng = Generator().manual_seed(self._seed(_AUGMENTATION, batch))
        image, mask = self.augment(normalise(batch["image"], self.window), batch["mask"], rng)
        logits = self.network(laid_out(image, self.memory_format))  # (B, 1, D, H, W)
        loss = self.loss(logits, self.task.target(mask.squeeze(1)))
        return {**getattr(self.loss, "parts", {}), "loss": loss}

    def on_validation_start(self) -> None:
        """Give every process the batch statistics of the first one, which are those of the checkpoints."""
        if dist.is_initialized():
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)

    def validation_step(self, cases: CaseSet, batch_idx: int) -> dict[str, Any]:
        """Scores all cases of the set, each on one process. Returns this process's first case, for a picture."""
        shown: dict[str, Any] = {}
        self._validation_losses = []

        def segment(case: PreparedCase) -> np.ndarray:
            classes = self.segment(case)
            if not shown:
                reference = self.task.target(torch.tensor(np.array(case.mask))).numpy().astype(np.uint8)
                shown.update(case=case.id, image=case.image, reference=reference, prediction=case.grid.labels(classes))
            return classes

        rows = evaluate_cases(
            segment, {"validation": cases.cases}, self.task, slow=False, scores=self.validation_scores
        )
        found = validation_scores(rows) | _mean_loss(self._validation_losses, self.device)
        self.log_dict(found, logger=False, batch_size=len(cases.cases))
        return shown

    def segment(self, case: PreparedCase) -> np.ndarray:
        """Class map of a case on the scan's own grid; all background once the run was asked to stop."""
        if self.stopping():
            return np.zeros(case.grid.native.shape_zyx, np.uint8)
        watch = partial(self._keep_loss, case)
        return segment_case(self.network, case.image, case.grid, self.task, self.window, self.inferer, watch)

    @torch.inference_mode()
    def _keep_loss(self, case: PreparedCase, logits: Tensor) -> None:
        """The training's loss of a whole case (C, z, y, x): the mean over slabs, weighted by their slices."""
        total = 0.0
        for start in range(0, logits.shape[1], _SLAB):
            slab = logits[None, :, start : start + _SLAB]
            mask = torch.from_numpy(np.array(case.mask[start : start + _SLAB])).to(logits.device)
            total += float(self.loss(slab, self.task.target(mask)[None])) * slab.shape[2]
        self._validation_losses.append(total / logits.shape[1])

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(one for one in self.network.parameters() if one.requires_grad)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self.schedule), "interval": "step"},
        }

    def _seed(self, stream: int, batch: Batch) -> int:
        rank = self.global_rank + (batch["part"] * self.trainer.world_size if batch["part"] else 0)
        words = np.random.SeedSequence((stream, self.seed, self.global_step, rank)).generate_state(2)
        return int(words[0]) << 31 | int(words[1]) >> 1  # 63 bits


def validation_scores(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """`val/<structure>/<metric>` means over the cases where it is defined, and `val/dice`, the mean over structures."""
    parts = summarise_sets(rows)["validation"]
    scores = {
        f"val/{structure}/{metric.name}": summary[metric.name]["mean"]
        for structure, summary in parts.items()
        for metric in METRICS
        if summary[metric.name]["mean"] is not None
    }
    dice = [scores[f"val/{structure}/dice"] for structure in parts if f"val/{structure}/dice" in scores]
    return scores | ({"val/dice": float(np.mean(dice))} if dice else {})


def _mean_loss(losses: Sequence[float], device: torch.device) -> dict[str, float]:
    """`val/loss`, the mean over the cases of all processes; nothing where none was segmented."""
    sums = torch.tensor([sum(losses), len(losses)], dtype=torch.float32, device=device)
    if dist.is_initialized():
        dist.all_reduce(sums)
    total, cases = sums.tolist()
    return {"val/loss": total / cases} if cases else {}
