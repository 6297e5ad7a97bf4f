"""Contenders for one piece of work, timed beside each other in one process, in rotated order.

Times on a shared machine move by factors, so what counts is the ratio within a round: a contender's CPU seconds over
ours of the same round, its median over the rounds with the smallest and the largest.
"""

import gc
import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

T = TypeVar("T")
OURS, OTHER_OF_OURS, USUAL, TUNED = "ours", "ours, another option", "as usually written", "tuned"
PACKAGES = ("torch", "monai", "torchio", "nnunetv2", "batchgeneratorsv2", "surface-distance", "SimpleITK", "numpy")


@dataclass
class Contender:
    """Somebody's way to do the work. `make` prepares it, which is not timed, and gives what one round runs."""

    name: str
    kind: str  # OURS (one of them), OTHER_OF_OURS, USUAL or TUNED
    make: Callable[[], Callable[[], Any]]


@dataclass
class Contest:
    """One piece of work. `check` compares what the contenders gave, before anything is timed; it raises, or tells."""

    title: str
    contenders: Sequence[Contender]
    units: int = 1  # how many a round makes: patches, scans; times are told for one
    rounds: int = 5
    check: Callable[[Mapping[str, Any]], str] = lambda results: ""


@dataclass
class Outcome:
    """What was measured of one contender: seconds of each round for one unit; or why it could not take part."""

    name: str
    kind: str
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)  # CPU over ours, round by round; above 1 we are faster
    megabytes: float = 0.0  # that making it took
    absent: str = ""


def compete(contest: Contest, say: Callable[[str], None] = print) -> tuple[list[Outcome], str]:
    """The outcomes, ours first, and what the check told."""
    outcomes, runs = [], {}
    for contender in sorted(contest.contenders, key=lambda one: one.kind != OURS):
        outcome = Outcome(contender.name, contender.kind)
        outcomes.append(outcome)
        gc.collect()
        before = _resident()
        try:
            runs[contender.name] = contender.make()
        except ImportError as error:
            outcome.absent = f"not installed ({error.name}): pip install -e '.[bench]'"
        outcome.megabytes = (_resident() - before) / 2**20
    found = {name: run() for name, run in runs.items()}  # which warms up, too
    told = contest.check(found)
    del found
    present = [outcome for outcome in outcomes if not outcome.absent]
    for turn in range(contest.rounds):
        for outcome in rotated(present, turn):
            cpu, wall = _cpu(), time.perf_counter()
            runs[outcome.name]()
            outcome.wall.append((time.perf_counter() - wall) / contest.units)
            outcome.cpu.append((_cpu() - cpu) / contest.units)
        say(f"  {contest.title}: round {turn + 1} of {contest.rounds}")
    ours = next(outcome for outcome in present if outcome.kind == OURS)
    for outcome in present:
        outcome.ratio = [cpu / own for cpu, own in zip(outcome.cpu, ours.cpu, strict=True)]
    return outcomes, told


def rotated(items: Sequence[T], turn: int) -> list[T]:
    """All of them, so that another one begins in each turn."""
    start = turn % len(items)
    return [*items[start:], *items[:start]]


def markdown(title: str, outcomes: Sequence[Outcome], told: str) -> str:
    """The outcomes as a table, fastest first, and who wins."""
    lines = [f"### {title}", ""]
    lines += [told, ""] if told else []
    lines += ["| | | CPU ms | wall ms | CPU against ours (min, max) | MB |", "|---|---|--:|--:|--:|--:|"]
    present = sorted((one for one in outcomes if not one.absent), key=lambda one: median(one.cpu))
    for one in present:
        ratio = "1" if one.kind == OURS else f"{median(one.ratio):.2f} ({min(one.ratio):.2f}, {max(one.ratio):.2f})"
        times = f"{milliseconds(median(one.cpu))} | {milliseconds(median(one.wall))}"
        lines.append(f"| {one.name} | {one.kind} | {times} | {ratio} | {one.megabytes:.0f} |")
    lines += [f"| {one.name} | {one.kind} | {one.absent} | | | |" for one in outcomes if one.absent]
    return "\n".join([*lines, "", verdict(present)])


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Who wins, by the medians of the ratios; within a tenth it is a tie."""
    others = [(median(one.ratio), one.name) for one in outcomes if one.kind in (USUAL, TUNED)]
    if not others:
        return "Nobody to compare with."
    ratio, name = min(others)
    if ratio < 1 / 1.1:
        return f"**{name} wins**: ours takes {1 / ratio:.2f} times its CPU time."
    if ratio < 1.1:
        return f"A tie with {name}."
    return f"Ours wins: {ratio:.2f} times less CPU time than the next, {name}."


def hardware() -> dict[str, Any]:
    """What computed, and with which versions; no name of the machine."""
    info = Path("/proc/cpuinfo")
    named = [line.partition(":")[2].strip() for line in _lines(info) if line.startswith("model name")]
    return {
        "processor": (named or [platform.machine()])[0],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "onednn": torch.backends.mkldnn.is_available(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _cpu() -> float:
    """CPU seconds of this process with all its threads, and of the children it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _resident() -> int:
    """Bytes of this process in memory; 0 where that is not told."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.is_file() else 0


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, with as many digits as they are worth."""
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.2g}"
