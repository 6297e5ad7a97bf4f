"""What a task segments: which stored labels it is trained on, which network classes make which anatomical structure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from covidseg.system.errors import BadInput

if TYPE_CHECKING:
    import torch

NAMES = ("lesion", "lung")  # every structure of every task; also the suffixes of mask files


@dataclass(frozen=True)
class Structure:
    """One anatomical structure: a union of classes on the network's side, of stored labels on the reference's."""

    channels: tuple[int, ...]
    labels: tuple[int, ...]
    tolerance_mm: float  # of the surface Dice

    def in_prediction(self, classes: np.ndarray) -> np.ndarray:
        """Boolean mask of the structure in a class map (the network's argmax)."""
        return _among(classes, self.channels)

    def in_reference(self, labels: np.ndarray) -> np.ndarray:
        """Boolean mask of the structure in a stored label map (0 background, 1 lesion-free lung, 2 lesion)."""
        return _among(labels, self.labels)


def _among(values: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """Where a map of small numbers has one of those `wanted`; `np.isin` takes eight bytes a voxel on the way."""
    table = np.zeros(256, bool)
    table[list(wanted)] = True
    found: np.ndarray = table[values.astype(np.uint8, copy=False)]
    return found


@dataclass(frozen=True)
class Task:
    """`conf/task/<name>.yaml`, checked. `label_to_target[stored label]` is the class the network learns for it."""

    name: str
    out_channels: int
    label_to_target: tuple[int, ...]
    structures: Mapping[str, Structure]

    def __post_init__(self) -> None:
        classes = range(max(self.out_channels, 2))  # one channel is a sigmoid head: background and one class
        if self.out_channels < 1 or len(self.label_to_target) != 3 or not set(self.label_to_target) <= set(classes):
            wrong = f"{list(self.label_to_target)} does not give each of 3 stored labels one of {len(classes)} classes"
            raise BadInput("task.label_to_target", wrong, f"see conf/task, and task.out_channels={self.out_channels}")
        for name, part in self.structures.items():
            if name not in NAMES or not part.channels or not part.labels or not {1, 2} >= set(part.labels):
                raise BadInput(f"task.structures.{name}", "is no union of stored labels", "see conf/task/joint.yaml")
            if not set(part.channels) <= set(classes[1:]):
                wrong = f"{list(part.channels)} are not among the classes 1 to {classes[-1]} of the network"
                raise BadInput(f"task.structures.{name}.channels", wrong, "raise task.out_channels")
            learned = [label for label, target in enumerate(self.label_to_target) if target in part.channels]
            if learned != sorted(set(part.labels)):
                wrong = f"{list(part.labels)} are scored, and task.label_to_target teaches {learned} as this structure"
                raise BadInput(f"task.structures.{name}.labels", wrong, "make the two agree, see conf/task")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From the `task` section of a configuration (a plain mapping or OmegaConf's). Raises `BadInput`."""
        structures = {
            str(name): Structure(tuple(part["channels"]), tuple(part["labels"]), float(part["tolerance_mm"]))
            for name, part in config["structures"].items()
        }
        return cls(str(config["name"]), int(config["out_channels"]), tuple(config["label_to_target"]), structures)

    def alone(self, name: str) -> Self:
        """The binary task of one structure: its mask is class 1."""
        part = self.structures[name]
        taught = tuple(int(label in part.labels) for label in range(3))
        return type(self)(self.name, 2, taught, {name: replace(part, channels=(1,))})

    def target(self, labels: "torch.Tensor") -> "torch.Tensor":
        """Training target of a stored label map of any integer type: int64, same shape, on the same device."""
        return _table(self.label_to_target, labels.device)[labels.long()]


@cache
def _table(label_to_target: tuple[int, ...], device: "torch.device") -> "torch.Tensor":
    """The class of each stored label, sent to the device once: each time, the host would wait for the device."""
    import torch  # the report names structures without it

    with torch.inference_mode(False):
        return torch.tensor(label_to_target, device=device)
