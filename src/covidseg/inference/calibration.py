"""What is kept of a network's probabilities while it segments."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from covidseg.evaluation.calibration import Reliability
from covidseg.evaluation.structures import Task

if TYPE_CHECKING:
    from covidseg.data.store import PreparedCase


def keep_calibration(run: Path | str, task: Task, case: "PreparedCase", logits: Tensor) -> None:
    """Write the case's `Reliability` for each annotated structure of the task into the `run` folder.

    `logits`: (C, D, H, W) on the case's prepared grid.
    """
    probabilities = logits.softmax(dim=0)
    for name, structure in task.structures.items():
        if name not in case.annotated:
            continue
        probability = probabilities[list(structure.channels)].sum(dim=0).cpu().numpy()
        found = Reliability.of(probability, structure.in_reference(case.mask), case.grid.spacing_zyx)
        if found:
            found.save(run, case.id, name)
