"""Voxel size, patch, width and batch for a data set and a device, by nnU-Net's rules (Isensee et al. 2021) in short.

Voxels: the median over the scans; where one axis is three times as coarse as the finest, its 10th percentile instead.
Patch: of the shape of a cube in millimetres, at most the median body, shrunk along the axis that covers most of it
until a training step of two patches fits. Width: the network's own, halved until such a patch is worth having. Batch:
two, more only where the patch holds the whole body.
"""

import gc
import math
import os
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml

from covidseg.config.build import instantiate
from covidseg.config.plans import plan_file
from covidseg.inference.window import per_axis
from covidseg.nets.cost import bytes_for_backward, meta_network, parameters
from covidseg.scans.geometry import triple
from covidseg.system.errors import BadInput
from covidseg.system.faults import is_out_of_memory
from covidseg.system.files import write_text
from covidseg.training.losses import DiceCrossEntropy

ANISOTROPIC, COARSE_PERCENTILE = 3.0, 10.0
LARGEST_VOXELS = 256**3  # of the patch that is shrunk
WORTH_HAVING = 64 * 64 * 32  # voxels of a patch; below it a narrower network is tried
LEAST_WIDTH, LEAST_BATCH, LARGEST_BATCH = 8, 2, 8
SHARE_OF_DATA = 0.05  # of all voxels that a batch may hold
HEADROOM = 1.3  # gradients and workspaces over what autograd keeps
PER_PARAMETER = 16  # bytes: weight, gradient, two moments
RESERVED = 1 << 29  # bytes: the program and its context


@dataclass(frozen=True)
class Plan:
    """What `recipe=planned` trains with, and why in words."""

    model: str
    spacing_zyx: tuple[float, float, float]
    patch_size_zyx: tuple[int, int, int]
    width: int
    batch_size: int
    why: tuple[str, ...]

    def save(self, home: Path | str, name: str) -> Path:
        """Write it where `recipe=planned` looks for it."""
        path = plan_file(home, name)
        content = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in {"format": 1, **asdict(self)}.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120))
        return path


def plan(infos: Sequence[Mapping[str, Any]], model: Mapping[str, Any], name: str, budget: int | None = None) -> Plan:
    """The plan for cases as `case.json` describes them, for the network that `model` (called `name`) configures.

    `budget`: bytes for a training step; None measures what the device has. Raises `BadInput` where nothing fits.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = budget or available_bytes(device)
    stride = per_axis(cast(int, meta_network(model).stride))
    spacing = target_spacing(list(map(_canonical, infos)))
    shape = median_shape(infos, spacing)
    width, patch, batch, needed = _fitting(model, name, stride, spacing, shape, len(infos), memory)
    why = [
        f"voxels of {' x '.join(f'{mm:g}' for mm in spacing)} mm: the median of {len(infos)} scans",
        f"the median body has {' x '.join(map(str, shape))} voxels, the patch covers "
        f"{math.prod(min(p, n) / n for p, n in zip(patch, shape, strict=True)):.0%} of it",
        f"a step of {batch} patches is estimated at {needed / 1e9:.1f} GB; {memory / 1e9:.1f} GB are there "
        f"({device.type})",
    ]
    measured, seconds = measure_step({**model, "width": width}, patch, batch, device)
    while measured > memory and _shrunk(patch, shape, stride) != patch:
        patch = _shrunk(patch, shape, stride)
        measured, seconds = measure_step({**model, "width": width}, patch, batch, device)
    why.append(f"measured: {measured / 1e9:.1f} GB, {seconds:.1f} s for a step of forward, backward and update")
    return Plan(name, spacing, patch, width, batch, tuple(why))


def available_bytes(device: torch.device) -> int:
    """What a training may take: nine tenths of a free GPU, half of the memory beside a CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(0.9 * free)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def target_spacing(spacings: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Millimetres (z, y, x) for scans of these: the median; of a far coarser axis its 10th percentile."""
    table = np.array(spacings, dtype=float)
    median = np.median(table, axis=0)
    coarse = median > ANISOTROPIC * median.min()
    chosen = np.where(coarse, np.percentile(table, COARSE_PERCENTILE, axis=0), median)
    return cast(tuple[float, float, float], tuple(round(float(max(mm, median.min())), 3) for mm in chosen))


def _canonical(info: Mapping[str, Any]) -> Sequence[float]:
    """Millimetres of a scan's voxels (z, y, x) in canonical axes, whichever it was stored in."""
    from covidseg.data.prepare.grid import Grid

    return Grid.from_dict(info["grid"]).native.canonical().spacing_zyx


def median_shape(infos: Sequence[Mapping[str, Any]], spacing: Sequence[float]) -> tuple[int, int, int]:
    """Voxels (z, y, x) of the median body box at `spacing`."""
    extents = []
    for info in infos:
        box, own = info["grid"]["box_zyx"], _canonical(info)
        extents.append([(high - low) * mm for (low, high), mm in zip(box, own, strict=True)])
    return triple(max(1, round(float(mm) / step)) for mm, step in zip(np.median(extents, axis=0), spacing, strict=True))


def _fitting(
    model: Mapping[str, Any],
    name: str,
    stride: Sequence[int],
    spacing: Sequence[float],
    shape: Sequence[int],
    cases: int,
    memory: int,
) -> tuple[int, tuple[int, int, int], int, int]:
    """(width, patch, batch, bytes needed) of the widest network with a patch worth having."""
    first = _first_patch(spacing, shape, stride)
    width = int(model["width"])
    while True:
        need = _Need.of({**model, "width": width}, stride)
        patch, batch = first, LEAST_BATCH
        while need(batch, patch) > memory and _shrunk(patch, shape, stride) != patch:
            patch = _shrunk(patch, shape, stride)
        fits = need(batch, patch) <= memory
        if fits and (patch == first or math.prod(patch) >= WORTH_HAVING or width <= LEAST_WIDTH):
            break
        if width <= LEAST_WIDTH:
            wrong = f"not even {name} of width {width} on the smallest patch trains in {memory / 1e9:.1f} GB"
            raise BadInput("plan", wrong, "another model=, a machine with more, or a larger plan_memory_gb")
        width = max(LEAST_WIDTH, width // 2)
    if patch == first:  # the whole body: memory that is left goes into the batch
        of_data = int(SHARE_OF_DATA * cases * math.prod(shape) / math.prod(patch))
        while batch < min(LARGEST_BATCH, of_data) and need(batch + 1, patch) <= memory:
            batch += 1
    return width, patch, batch, need(batch, patch)


def _first_patch(spacing: Sequence[float], shape: Sequence[int], stride: Sequence[int]) -> tuple[int, int, int]:
    """A cube in millimetres of `LARGEST_VOXELS`, cut to the median body, of whole strides."""
    side = (LARGEST_VOXELS * math.prod(spacing)) ** (1 / 3)
    wanted = [min(side / mm, n) for mm, n in zip(spacing, shape, strict=True)]
    return triple(max(2, math.ceil(n / step)) * step for n, step in zip(wanted, stride, strict=True))


def _shrunk(patch: Sequence[int], shape: Sequence[int], stride: Sequence[int]) -> tuple[int, int, int]:
    """One stride less along the axis that covers most of the body; the same where none can be less."""
    open_axes = [axis for axis in range(3) if patch[axis] > 2 * stride[axis]]
    if not open_axes:
        return triple(patch)
    axis = max(open_axes, key=lambda axis: patch[axis] / shape[axis])
    return triple(n - stride[axis] * (number == axis) for number, n in enumerate(patch))


@dataclass(frozen=True)
class _Need:
    """Bytes of a training step: what autograd keeps grows with the voxels."""

    fixed: float
    per_voxel: float

    @classmethod
    def of(cls, model: Mapping[str, Any], stride: Sequence[int]) -> "_Need":
        probe = [max(2, 64 // step) * step for step in stride]
        kept = bytes_for_backward(meta_network(model), 2, probe) / (2 * math.prod(probe))
        return cls(RESERVED + PER_PARAMETER * parameters(meta_network(model)), HEADROOM * kept)

    def __call__(self, batch: int, patch: Sequence[int]) -> int:
        return int(self.fixed + self.per_voxel * batch * math.prod(patch))


def measure_step(model: Mapping[str, Any], patch: Sequence[int], batch: int, device: torch.device) -> tuple[int, float]:
    """(peak bytes, seconds) of a training step on the device; more bytes than there are where it does not fit."""
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        network = instantiate(model, "model").to(device).train()
        optimizer, loss = torch.optim.AdamW(network.parameters()), DiceCrossEntropy(0.5, 0.5)
        image = torch.rand(batch, 1, *patch, device=device)
        target = (image[:, 0] > 0.9).long()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(image)
        loss(logits, target).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return 1 << 62, math.inf
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), seconds
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, 0), seconds
