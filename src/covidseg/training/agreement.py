"""What all processes of a run decide together, at one point of their work."""

import torch
import torch.distributed as dist


def agreed(word: int, device: torch.device) -> int:
    """The largest `word` of all processes; each of them has to call this at the same point."""
    if not dist.is_initialized():
        return word
    shared = torch.tensor([word], device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)
