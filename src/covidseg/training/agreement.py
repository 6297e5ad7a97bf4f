"""What all processes of a run decide together, at one point of their work."""

import os

import torch
import torch.distributed as dist

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
