"""The data side of a run: patches for training, whole cases for validation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from covidseg.data.prepare.splits import SIDES
from covidseg.data.protocol import Division, other_task
from covidseg.data.store import PreparedCase, PreparedDataset
from covidseg.data.train.loader import PatchLoader
from covidseg.data.train.patches import PatchSampler
from covidseg.system.errors import BadInput


class CTDataModule(pl.LightningDataModule):
    """Cases of a prepared data set, divided as its `splits.json` says.

    `structures` are what the task segments: a case is trained on only if all of them are annotated in it, since an
    unannotated lesion would be taught as background; it is scored on those that are. `training` is the config section;
    `choosing`: something is chosen by validation, so a published fold has to give some of its training cases for that.
    `score_on`: "held_out", the sets that `Division.scored` names, or "validation".
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        fold: int | str | None,
        structures: Sequence[str],
        training: Mapping[str, Any],
        seed: int,
        choosing: bool = False,
        score_on: str = "held_out",
    ):
        super().__init__()
        self.dataset, self.structures, self.training, self.seed = dataset, tuple(structures), training, seed
        split = dataset.split(fold, choosing)
        cases = {name: [dataset.cases[case] for case in getattr(split, name)] for name in SIDES}
        self.train_cases = [case for case in cases["train"] if set(self.structures) <= set(case.annotated)]
        self.left_out = [case.id for case in cases["train"] if case not in self.train_cases]
        if not self.train_cases:
            raise BadInput(
                dataset.name,
                f"no training case has {' and '.join(self.structures)} annotated",
                other_task(case.annotated for case in cases["train"]),
            )
        self.sets: dict[str, list[PreparedCase]] = {
            name: [case for case in cases[name] if set(self.structures) & set(case.annotated)]
            for name in SIDES
            if name != "train"
        }
        division = Division.of_prepared(dataset)
        self.scored = division.scored(fold, self.structures)  # the sets that give the scores
        if score_on == "validation":
            self._require_validation()
            self.scored = ("validation",)
        self.protocol = division.protocol(fold, self.structures, self.scored)

    def _require_validation(self) -> None:
        if not self.sets["validation"]:
            wrong = f"no case of {self.dataset.name} is kept for validation"
            raise BadInput("training.score_on=validation", wrong, "raise data.splits.validation_fraction")

    @property
    def can_choose(self) -> bool:
        """Whether validation can tell a better network from a worse one: some case has something to be found."""
        return any(len(case.foreground[name]) for case in self.sets["validation"] for name in self.structures)

    def train_dataloader(self) -> PatchLoader:
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = PatchSampler(
            self.train_cases,
            self.structures,
            self.training["patch_size_zyx"],
            self.training["batch_size"],
            self.training["foreground_probability"],
            self.seed,
            rank,
            ranks,
            self.trainer.accumulate_grad_batches if self.trainer else 1,
        )
        return PatchLoader(
            sampler,
            self.training["max_steps"],
            self.training["loader_threads"],
            self.training["prefetch"],
            self.trainer.strategy.root_device if self.trainer else None,
        )

    def val_dataloader(self) -> "CaseSet":
        return CaseSet(self.sets["validation"])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Patches go to the device; whole cases stay memory-mapped until they are segmented."""
        if isinstance(batch, CaseSet):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


class CaseSet:
    """All cases of a set as one batch, on every rank: who scores which is decided where the rows are gathered again.

    A loader of single cases would give some ranks none, and Lightning skips the whole validation there.
    """

    def __init__(self, cases: Sequence[PreparedCase]):
        self.cases = list(cases)

    def __len__(self) -> int:
        return 1 if self.cases else 0

    def __iter__(self) -> Iterator["CaseSet"]:
        yield self
