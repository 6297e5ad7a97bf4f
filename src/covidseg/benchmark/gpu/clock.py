"""Times of a device that works behind the host's back, and its memory."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

from covidseg.benchmark.contest import rotated

WARM_UP = 3  # runs before the first one that counts: kernels are loaded, cuDNN searches


def device() -> torch.device:
    """The first GPU; the CPU where there is none, which is a rehearsal."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def milliseconds(run: Callable[[], Any], rounds: int, warm_up: int = WARM_UP) -> float:
    """Median of single runs."""
    for _ in range(warm_up):
        run()
    return median(_once(run) for _ in range(rounds))


def in_turns(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, all of them once in every round, in rotated order; each is warm before."""
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in rotated(list(runs), turn):
            taken[name].append(_once(runs[name]))
    return taken


def peak_gigabytes(run: Callable[[], Any]) -> float | None:
    """What a run holds at its peak beyond what there is before it; None on a CPU, which does not tell."""
    if device().type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


@contextmanager
def searching(wanted: bool) -> Iterator[None]:
    """Let cuDNN try its kernels for each new size, as Lightning's `benchmark` does, or not."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _once(run: Callable[[], Any]) -> float:
    if device().type != "cuda":
        began = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - began)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))
