"""What a sweep will take, said before it starts: time from measured steps, disk from the networks' sizes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from covidseg.config.plain import as_dict
from covidseg.runs.folder import RunFolder
from covidseg.sweep.rows import Row
from covidseg.sweep.schedule import best_order, makespan
from covidseg.sweep.view import duration
from covidseg.system.errors import BadInput, EnvironmentFault

_BYTES_PER_PARAMETER = 3 * 4  # a checkpoint holds the weights and Adam's two moments, in single precision
_CHECKPOINTS = 4  # last, the one before it, best, and one that is being written
_OTHER_BYTES = 30 * 2**20  # curves, cases, logs, the tracker's figures
_GIB = 2**30
QUICK_SECONDS = 10.0  # of training, on a machine where no run was measured
_WORTH_MEASURING = 1e13  # multiply-adds: minutes on two CPU cores
_FORWARD = 1 / 3  # of a training step's time: no gradients
_PATIENCE = 90.0  # for that, with the start of the process


@dataclass
class Size:
    """What is known of a network without training it, at its run's patch size."""

    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Measured:
    """What finished or running runs of one network took on this kind of device."""

    per_patch: float  # seconds of one process
    starting: float | None = None  # seconds before the first step
    scores: float | None = None  # seconds of all validations and the evaluation

    @classmethod
    def median(cls, runs: Sequence["Measured"]) -> "Measured":
        """The medians of what is known of several."""
        starting = [run.starting for run in runs if run.starting is not None]
        scores = [run.scores for run in runs if run.scores is not None]
        return cls(
            median(run.per_patch for run in runs),
            median(starting) if starting else None,
            median(scores) if scores else None,
        )


@dataclass(frozen=True)
class Rate:
    """How fast this machine trains."""

    per_multiply_add: float | None  # seconds of a training step
    starting: float  # seconds before the first one


class Priced(NamedTuple):
    """How many rows were measured, how many more are scaled by their multiply-adds, of how many the scores count."""

    measured: int
    scaled: int
    scored: int


def network_sizes(rows: Sequence[Row]) -> list[Size | None]:
    """The size of each row's network; None where it cannot be made.

    Asked of a process of its own, so that the driver, which lives as long as the sweep, does not carry torch.
    """
    keys = [_network_key(row.model, row.patch_size_zyx) for row in rows]
    asked = {
        key: [row.model, row.patch_size_zyx] for key, row in zip(keys, rows, strict=True) if "_target_" in row.model
    }
    if not asked:
        return [None] * len(rows)
    command = [sys.executable, "-m", "covidseg.sweep.sizes"]
    answer = subprocess.run(command, input=json.dumps(list(asked.values())), capture_output=True, text=True)
    try:
        sizes = dict(zip(asked, json.loads(answer.stdout.splitlines()[-1]), strict=True))
    except (IndexError, ValueError):  # whatever is wrong with the networks, their runs will say it better
        sizes = dict.fromkeys(asked)
    return [Size(*sizes[key]) if sizes.get(key) else None for key in keys]


def is_long(rows: Sequence[Row], sizes: Sequence[Size | None]) -> bool:
    """Whether the rows compute so much that it is worth ten seconds to say how long they will take."""
    work = sum(
        size.multiply_adds * row.batch_size * row.max_steps for row, size in zip(rows, sizes, strict=True) if size
    )
    return work > _WORTH_MEASURING


def quick_rate(rows: Sequence[Row], sizes: Sequence[Size | None], environment: Mapping[str, str]) -> Rate | None:
    """How fast this machine trains, from ten seconds on one device; None where that fails.

    Of the row whose network is in the middle, in a process with the `environment` that a run gets.
    """
    known = sorted(((size.multiply_adds, index) for index, size in enumerate(sizes) if size), key=lambda pair: pair[0])
    if not known:
        return None
    row = rows[known[len(known) // 2][1]]
    asked = {
        "model": row.model,
        "patch_size_zyx": row.patch_size_zyx,
        "batch_size": row.batch_size,
        "seconds": QUICK_SECONDS,
    }
    command = [sys.executable, "-m", "covidseg.sweep.rate"]
    try:
        answer = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, env=dict(environment), timeout=_PATIENCE
        )
        rate = json.loads(answer.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return None
    return Rate(float(rate["seconds_per_multiply_add"]), float(rate["starting"])) if rate else None


def measured_runs(runs: Path, on_gpu: bool) -> dict[str, Measured]:
    """How long the runs below `runs` took, by network and patch size.

    Only those on the same kind of device: a CPU's steps say nothing about a GPU's.
    """
    seen: dict[str, list[Measured]] = {}
    for config in sorted(Path(runs).glob("*/*/*/*/config.yaml")):
        folder = RunFolder(config.parent)
        try:
            status = folder.status or {}
            rate, seconds = status.get("patches_per_second"), status.get("seconds")
            manifest, cfg = folder.manifest, folder.config
            if not rate or not manifest or cfg is None:
                continue
            attempt = manifest["attempts"][-1]
            if (attempt["device"] != "cpu") != on_gpu:
                continue
            key = _network_key(as_dict(cfg.model), list(cfg.training.patch_size_zyx))
            scores = seconds["validation"] + seconds["evaluating"] if seconds and folder.is_finished else None
            found = Measured(attempt["processes"] / rate, seconds["starting"] if seconds else None, scores)
        except (BadInput, TypeError, LookupError, AttributeError):
            continue  # a run that has not come so far, or one of an older version
        seen.setdefault(key, []).append(found)
    return {key: Measured.median(values) for key, values in seen.items()}


def price(
    rows: Sequence[Row], sizes: Sequence[Size | None], measured: Mapping[str, Measured], rate: Rate | None = None
) -> Priced:
    """Set each row's `cost`: seconds left, or multiply-adds in proportion to them where none was measured.

    `rate`: of this machine, where no row was measured. What is not training, starting and scores, is added as it was
    measured, in proportion to the multiply-adds, or from the windows of the cases that lie prepared.
    """
    found = [measured.get(_network_key(row.model, row.patch_size_zyx)) for row in rows]
    known = [(size.multiply_adds, run) for size, run in zip(sizes, found, strict=True) if size and run]
    own = rate or Rate(None, 0.0)
    scale = median(run.per_patch / work for work, run in known) if known else own.per_multiply_add
    started = [run.starting for run in measured.values() if run.starting is not None]
    starting = median(started) if started else own.starting
    scored = [run.scores / work for work, run in known if run.scores is not None]
    scaled = around = 0
    for row, size, run in zip(rows, sizes, found, strict=True):
        steps = row.max_steps - ((row.folder.status or {}).get("step") or 0)
        per_patch = _per_patch(size, run, scale)
        scaled += bool(run is None and size and scale)
        scores = _seconds_of_scores(row, size, run, median(scored) if scored else None, scale)
        row.around = starting + (scores or 0.0) if scale else 0.0
        row.cost = per_patch * row.batch_size * max(steps, 1) + row.around
        around += scores is not None
    return Priced(sum(run is not None for run in found), scaled, around)


def _per_patch(size: Size | None, run: Measured | None, scale: float | None) -> float:
    """Seconds, or multiply-adds where no scale is known, or 1 where nothing is."""
    if run:
        return run.per_patch
    return size.multiply_adds * (scale or 1.0) if size else 1.0


def _seconds_of_scores(
    row: Row, size: Size | None, run: Measured | None, per_multiply_add: float | None, scale: float | None
) -> float | None:
    """What validation and evaluation of a row take; None where nothing tells."""
    if run and run.scores is not None:
        return run.scores
    if size and per_multiply_add is not None:
        return per_multiply_add * size.multiply_adds
    if not size or not scale or not row.scoring:
        return None
    windows = row.scoring.windows()
    return None if windows is None else windows * size.multiply_adds * scale * _FORWARD


def expected_time(rows: Sequence[Row], priced: Priced, slots: int | None) -> str:
    """The line about time. `slots`: devices of the pool; None for a cluster, which promises nothing."""
    if priced.measured + priced.scaled < len(rows):
        return "expected time: unknown, no run of these networks was measured here yet"
    measured = f"measured steps of {priced.measured} of {len(rows)} runs"
    source = measured if priced.measured else f"{QUICK_SECONDS:.0f} s on one device"
    source += f", {priced.scaled} scaled by multiply-adds" if priced.scaled else ""
    share = sum(row.around for row in rows) / sum(row.cost for row in rows)
    parts = (
        "starting and evaluation" if priced.scored == len(rows) else "starting, without evaluation: no case is prepared"
    )
    about = f"{share:.0%} of it {parts}; {source}"
    if slots is None:
        return f"expected time: {duration(sum(row.cost for row in rows))} of run time in all ({about})"
    return f"expected time: {duration(makespan(best_order(rows, slots), slots))} ({about})"


def check_disk(rows: Sequence[Row], sizes: Sequence[Size | None], runs: Path) -> str:
    """The line about disk. Raises EnvironmentFault when what the runs still need is more than what is free."""
    need = 0
    for row, size in zip(rows, sizes, strict=True):
        full = _OTHER_BYTES + (_CHECKPOINTS * _BYTES_PER_PARAMETER * size.parameters if size else 0)
        need += max(0, full - _bytes_below(row.folder.path))
    there = next(folder for folder in (Path(runs).resolve(), *Path(runs).resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if need > free:
        raise EnvironmentFault(
            "disk",
            f"the sweep needs about {need / _GIB:.1f} GB, {free / _GIB:.1f} GB are free",
            "free some space or put paths.runs= on another disk",
        )
    return f"disk: about {need / _GIB:.1f} GB more, {free / _GIB:.1f} GB free"


def _network_key(model: dict[str, Any], patch_size_zyx: Sequence[int]) -> str:
    return json.dumps([model, list(patch_size_zyx)], sort_keys=True)


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
