"""Every convolution of a network by itself: who computes it, how fast, and whether the values are right."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig

from covidseg.benchmark.gpu.clock import device, milliseconds, searching
from covidseg.benchmark.gpu.sheet import Sheet
from covidseg.benchmark.gpu.steps import configured
from covidseg.nets.cost import meta_network
from covidseg.nets.kernels import attempt, convolutions

_WRONG = 0.02  # relative error that rounding to bfloat16 does not explain
_WAYS = {
    "bfloat16": (torch.bfloat16, torch.channels_last_3d),
    "contiguous": (torch.bfloat16, torch.contiguous_format),
    "float32": (torch.float32, torch.channels_last_3d),
}


def measured(options: DictConfig, rate: float, has_time: Callable[[], bool]) -> Sheet:
    """Forward and backward pass of each, the most expensive first."""
    found = convolutions(meta_network(configured(options).model), int(options.batch_size), options.patch_size_zyx)
    seconds = partial(_seconds, rounds=int(options.rounds))
    rows: list[dict[str, Any]] = []
    told = []
    for one, count in sorted(found.items(), key=lambda pair: -pair[0].multiply_adds * pair[1]):
        if not has_time():
            told.append(f"No time for {len(found) - len(rows)} more.")
            break
        trials = {name: attempt(one, device(), dtype, memory, seconds) for name, (dtype, memory) in _WAYS.items()}
        own = trials["bfloat16"]
        told += [f"**{one.name}: off by {own.error:.1%} in bfloat16.**"] if not own.error < _WRONG else []
        told += [f"**{one.name}: computed by {own.backend}, which is slow.**"] if own.is_slow else []
        rows.append(
            {
                "convolution": one.name,
                "count": count,
                "backend": own.backend,
                "all": 1000 * own.seconds * count,
                **{name: 1000 * trial.seconds for name, trial in trials.items()},
                "teraflops": own.teraflops,
                "of_rate": own.teraflops / rate,
                "error": own.error,
            }
        )
    rows.sort(key=lambda row: -row["all"])
    total = sum(row["all"] for row in rows)
    told.append(f"All together {total:.1f} ms a step.")
    columns = {
        "convolution": ("", "s"),
        "count": ("times", "d"),
        "backend": ("by", "s"),
        "bfloat16": ("ms", ".2f"),
        "contiguous": ("contiguous", ".2f"),
        "float32": ("float32", ".2f"),
        "teraflops": ("TFLOP/s", ",.0f"),
        "of_rate": ("of the matrix rate", ".1%"),
        "error": ("off by", ".1%"),
    }
    return Sheet(f"Convolutions of {options.model}: forward and backward pass, channels last", columns, rows, told)


def _seconds(run: Callable[[], object], rounds: int) -> float:
    with searching(True):
        return milliseconds(run, rounds, warm_up=2) / 1000
