"""How fast this machine trains, from ten seconds of it, in a process that imports torch and ends.

stdin: a JSON object of `model` (its configuration), `patch_size_zyx`, `batch_size` and `seconds`; last line of stdout:
`seconds_per_multiply_add` of the forward pass in a training step and the seconds of `starting`, or null where nothing
could be measured.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from covidseg.config.build import instantiate
from covidseg.nets.cost import meta_network, multiply_adds
from covidseg.system.clock import age

_STEPS = 2  # at each size, after one that warms up


def main() -> None:
    asked, starting = json.load(sys.stdin), age()
    try:
        rate = seconds_per_multiply_add(**asked)
        print(json.dumps(rate and {"seconds_per_multiply_add": rate, "starting": starting}))
    except Exception:  # an impossible network, or no memory for it: its own run says what is wrong
        print("null")


def seconds_per_multiply_add(
    model: Mapping[str, Any], patch_size_zyx: Sequence[int], batch_size: int, seconds: float
) -> float | None:
    """From steps on patches that grow towards the run's, as far as `seconds` reach; None where not one fits in."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = instantiate(model, "model").to(device, memory_format=torch.channels_last_3d)
    outline = meta_network(model)
    rate, began = None, time.monotonic()
    for size in _sizes(int(getattr(network, "stride", 1)), patch_size_zyx):
        taken = _step_seconds(network, (batch_size, size), device)
        rate = taken / (multiply_adds(outline, size) * batch_size)
        if time.monotonic() - began + 2 * (1 + _STEPS) * taken > seconds:  # the next is at least twice as large
            break
    return rate


def _sizes(stride: int, patch_size_zyx: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """From two strides on each axis to the whole patch, the smallest axis doubled each time."""
    size = [min(n, 2 * stride) for n in patch_size_zyx]
    while True:
        yield tuple(size)
        room = [axis for axis in range(3) if size[axis] < patch_size_zyx[axis]]
        if not room:
            return
        axis = min(room, key=lambda axis: size[axis])
        size[axis] = min(patch_size_zyx[axis], 2 * size[axis])


def _step_seconds(network: nn.Module, patches: tuple[int, tuple[int, ...]], device: torch.device) -> float:
    batch_size, size = patches
    image = torch.zeros(batch_size, int(network.in_channels), *size, device=device)  # type: ignore[arg-type]
    times = []
    for _ in range(1 + _STEPS):
        began = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            outputs = network(image)
        first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        functional.mse_loss(first.float(), torch.zeros_like(first, dtype=torch.float)).backward()
        network.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - began)
    return min(times[1:])


if __name__ == "__main__":
    main()
