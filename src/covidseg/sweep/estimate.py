"""What a sweep will take, said before it starts: time from measured steps, disk from the networks' sizes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

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
_PATIENCE = 90.0  # for that, with the start of the process


@dataclass
class Size:
    """What is known of a network without training it, at its run's patch size."""

    parameters: int
    multiply_adds: int


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


def quick_rate(rows: Sequence[Row], sizes: Sequence[Size | None], environment: Mapping[str, str]) -> float | None:
    """Seconds of training for each multiply-add, from ten seconds on one device; None where that fails.

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
    return float(rate) if rate else None


def measured_seconds_per_patch(runs: Path, on_gpu: bool) -> dict[str, float]:
    """Seconds that one process takes for a patch, by network and patch size, from the runs below `runs`.

    Only from those on the same kind of device: a CPU's steps say nothing about a GPU's.
    """
    seen: dict[str, list[float]] = {}
    for config in sorted(Path(runs).glob("*/*/*/*/config.yaml")):
        folder = RunFolder(config.parent)
        try:
            rate = (folder.status or {}).get("patches_per_second")
            manifest, cfg = folder.manifest, folder.config
            if not rate or not manifest or cfg is None:
                continue
            attempt = manifest["attempts"][-1]
            if (attempt["device"] != "cpu") != on_gpu:
                continue
            key = _network_key(as_dict(cfg.model), list(cfg.training.patch_size_zyx))
        except (BadInput, TypeError, LookupError, AttributeError):
            continue  # a run that has not come so far, or one of an older version
        seen.setdefault(key, []).append(attempt["processes"] / rate)
    return {key: median(values) for key, values in seen.items()}


def price(
    rows: Sequence[Row], sizes: Sequence[Size | None], measured: dict[str, float], rate: float | None = None
) -> tuple[int, int]:
    """Set each row's `cost`: seconds of training left, or multiply-adds in proportion to them where none was measured.

    `rate`: seconds for a multiply-add, where no row was measured. Returns how many rows were measured and how many
    more are scaled from these, or from `rate`, by their multiply-adds; the costs are seconds when the two add up to
    all rows.
    """
    speeds = [measured.get(_network_key(row.model, row.patch_size_zyx)) for row in rows]
    known = [(size.multiply_adds, speed) for size, speed in zip(sizes, speeds, strict=True) if size and speed]
    per_multiply_add = median(speed / work for work, speed in known) if known else rate or 1.0
    scaled = 0
    for row, size, speed in zip(rows, sizes, speeds, strict=True):
        steps = row.max_steps - ((row.folder.status or {}).get("step") or 0)
        if speed is None and size is not None:
            speed = size.multiply_adds * per_multiply_add
            scaled += bool(known or rate)
        row.cost = (speed or 1.0) * row.batch_size * max(steps, 1)
    return sum(speed is not None for speed in speeds), scaled


def expected_time(rows: Sequence[Row], measured: int, scaled: int, slots: int | None) -> str:
    """The line about time. `slots`: devices of the pool; None for a cluster, which promises nothing."""
    if measured + scaled < len(rows):
        return "expected training time: unknown, no run of these networks was measured here yet"
    source = f"measured steps of {measured} of {len(rows)} runs" if measured else f"{QUICK_SECONDS:.0f} s on one device"
    source += f", {scaled} scaled by multiply-adds" if scaled else ""
    if slots is None:
        return f"expected training time: {duration(sum(row.cost for row in rows))} of run time in all ({source})"
    return f"expected training time: {duration(makespan(best_order(rows, slots), slots))} ({source})"


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
