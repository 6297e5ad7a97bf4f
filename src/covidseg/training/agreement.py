"""What all processes of a run decide together, at one point of their work."""

import os

import torch
import torch.distributed as dist
from torch import Tensor

# Where Python stands while a process waits for others: collectives and the rendezvous, DDP's hooks in a backward pass.
# Not torch as a whole: a checkpoint that is written to a slow disk stands still there, too.
WAITS_IN = (
    *(os.path.join(os.path.dirname(torch.__file__), part) for part in ("distributed", "autograd", "nn/parallel")),
    __file__,
)


def agreed(word: int, device: torch.device) -> int:
    """The largest `word` of all processes; each of them has to call this at the same point."""
    if not dist.is_initialized():
        return word
    shared = torch.tensor([word], device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


class LaterAgreement:
    """The largest word of all processes, told one call later, so that no process waits for its device.

    All have to make the same calls in the same order.
    """

    def __init__(self) -> None:
        self._asked: tuple[Tensor, torch.cuda.Event | None] | None = None

    def ask(self, word: int, device: torch.device) -> int:
        """What the call before this one agreed on; 0 at first."""
        before = self._answer()
        if dist.is_initialized():
            self._asked = _asked(word, device)
            return before
        return word  # of one process it is known at once

    def settle(self, word: int, device: torch.device) -> int:
        """The largest word of this call and the one before it, now."""
        return max(self._answer(), agreed(word, device))

    def _answer(self) -> int:
        asked, self._asked = self._asked, None
        if asked is None:
            return 0
        value, copied = asked
        if copied is not None:
            copied.synchronize()
        return int(value)


def _asked(word: int, device: torch.device) -> tuple[Tensor, torch.cuda.Event | None]:
    """The answer on its way to the CPU, and what tells that it is there."""
    if device.type != "cuda":
        return torch.tensor([agreed(word, device)]), None
    shared = torch.tensor([word], pin_memory=True).to(device, non_blocking=True)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    value = torch.empty(1, dtype=shared.dtype, pin_memory=True).copy_(shared, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return value, copied
