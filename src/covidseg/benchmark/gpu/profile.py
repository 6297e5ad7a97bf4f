"""Where a training step's time goes on the device, by torch's operators."""

import math
from typing import Any

from omegaconf import DictConfig
from torch.profiler import ProfilerActivity, profile

from covidseg.benchmark.gpu.clock import WARM_UP, device
from covidseg.benchmark.gpu.sheet import Sheet
from covidseg.benchmark.gpu.steps import own_step

_SHOWN = 30
_STEPS = 3


def measured(options: DictConfig) -> Sheet:
    """Milliseconds of the device in each operator itself, a step; the largest first."""
    step = own_step(options)
    for _ in range(WARM_UP):
        step()
    on_gpu = device().type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True) as watch:
        for _ in range(_STEPS):
            step()
    spent = [
        (event.key, _shape(event), _microseconds(event, on_gpu) / 1000 / _STEPS, event.count)
        for event in watch.key_averages(group_by_input_shape=True)
    ]
    spent = sorted((one for one in spent if one[2] > 0), key=lambda one: -one[2])
    total = sum(taken for *_, taken, _ in spent)
    rows = [
        {"operator": name, "shape": shape, "milliseconds": taken, "share": taken / total, "calls": count // _STEPS}
        for name, shape, taken, count in spent[:_SHOWN]
    ]
    columns = {
        "operator": ("", "s"),
        "shape": ("of", "s"),
        "milliseconds": ("ms a step", ".2f"),
        "share": ("of all", ".1%"),
        "calls": ("calls", "d"),
    }
    return Sheet("Where a step's time goes, by operator", columns, rows, [f"All together {total:.1f} ms a step."])


def _shape(event: Any) -> str:
    """Of its largest input."""
    shapes = [shape for shape in event.input_shapes or () if shape and all(isinstance(n, int) for n in shape)]
    return " x ".join(map(str, max(shapes, key=math.prod, default=())))


def _microseconds(event: Any, on_gpu: bool) -> float:
    """Of an operator; kernels themselves are listed beside the operators that start them."""
    if not on_gpu:
        return float(event.self_cpu_time_total)
    return float(event.self_device_time_total) if event.key.startswith("aten::") else 0.0
