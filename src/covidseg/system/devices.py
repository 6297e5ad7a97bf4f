"""The GPUs that a run was given, and whether they are there."""

import os
from collections.abc import Callable

from covidseg.system.errors import EnvironmentFault

GIVEN_GPUS = "COVIDSEG_GPUS"  # set by a sweep for each of its runs: the devices that it may use


def slow_precision(device_type: str, precision: str, has_bf16_units: bool) -> str | None:
    """A word about half precision on a processor that computes it in software; None where there is nothing to say.

    `precision`: as Lightning or the inferer calls it.
    """
    if device_type != "cpu" or has_bf16_units or not precision.startswith(("bf16", "bfloat16", "16", "float16")):
        return None
    return f"{precision} on this CPU, which has no units for it, is many times slower than single precision"


def require_given_gpus(count: Callable[[], int]) -> None:
    """`EnvironmentFault` where a sweep gave this run GPUs and `count()` finds fewer: it would train on the CPU.

    `count`: `torch.cuda.device_count`, or what stands for it.
    """
    given = os.environ.get(GIVEN_GPUS, "")
    if not given:
        return
    wanted, there = len(given.split(",")), count()
    if there < wanted:
        wrong = f"was given to this run, and torch finds {there} of {wanted}"
        remedy = "is it in use by another job, or torch a build for CPUs? trainer=cpu trains without one"
        raise EnvironmentFault(f"GPU {given}", wrong, remedy)
