"""What a user waits for: a run of `train.py` with its shares of time, and a whole scan from file to file."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from covidseg.benchmark.call import train
from covidseg.benchmark.gpu.clock import device, peak_gigabytes
from covidseg.benchmark.gpu.sheet import Sheet
from covidseg.benchmark.scans import enlarged, scans, write_nifti
from covidseg.data.prepare.grid import Grid
from covidseg.inference.segmenter import Segmenter, load
from covidseg.inference.window import air, normalise
from covidseg.runs.timing import AROUND, DURING
from covidseg.scans.read import read_scan
from covidseg.scans.write import write_mask
from covidseg.system.files import read_json

_ROUNDS = 3
_OURS, _MONAI, _MONAI_MIXED = "covidseg", "MONAI as usually written", "MONAI, mixed precision"


def runs(cfg: DictConfig) -> Sheet:
    """Short runs at the paper's patch on phantoms: how much of the training is not the step."""
    rows = []
    for model in cfg.gpu.runs.models:
        metrics = read_json(_trained(cfg, model) / "metrics.json")
        seconds, train = metrics["seconds"], metrics["train"]
        training = sum(seconds[part] for part in DURING)
        shares = {part: seconds[part] / training for part in DURING}
        around = {part: seconds[part] for part in AROUND}
        rows.append({"run": model, "rate": train["patches_per_second"], **shares, **around})
    columns = {
        "run": ("", "s"),
        "rate": ("patches/s", ",.1f"),
        **{part: (part, ".1%") for part in DURING},
        "starting": ("starting, s", ".1f"),
        "evaluating": ("evaluating, s", ".1f"),
    }
    return Sheet(f"Runs of train.py: {cfg.gpu.runs.steps} steps, shares of the training", columns, rows)


def scan(cfg: DictConfig) -> Sheet:
    """One scan of a phantom at clinical size, read, segmented and written; beside it MONAI's inferer alone."""
    place = Path(cfg.output).absolute() / "gpu"
    segmenter = load(_trained(cfg, cfg.gpu.runs.models[0]), device=str(device()))
    path = _scan_file(cfg, place)
    began = time.perf_counter()
    read = read_scan(path)
    reading = time.perf_counter() - began
    grid, _ = segmenter.grid_of(read)
    image = torch.from_numpy(np.array(grid.image(read.voxels)))
    segmenter.segment(read)  # kernels are loaded

    def whole() -> np.ndarray:
        return segmenter.segment(read)

    target = place / "mask.nii.gz"
    mask, segmenting = _timed(whole)
    _, writing = _timed(lambda: write_mask(target, mask, read.geometry, overwrite=True))
    rows: list[dict[str, Any]] = [
        {"what": "read", "seconds": reading},
        {"what": "onto the network's grid", "seconds": _timed(lambda: grid.image(read.voxels))[1]},
        *_networks(segmenter, image),
        {"what": "back to the scan's grid", "seconds": _timed(lambda: _back(segmenter, grid, image))[1]},
        {"what": "segmented, all of it", "seconds": segmenting, "gigabytes": peak_gigabytes(whole)},
        {"what": "written and read back", "seconds": writing},
    ]
    z, y, x = read.geometry.shape_zyx
    inside = " x ".join(str(n) for n in tuple(image.shape)[::-1])
    title = f"A scan of {x} x {y} x {z}, {inside} for the network ({segmenter.name})"
    return Sheet(title, {"what": ("", "s"), "seconds": ("s", ".2f"), "gigabytes": ("GB", ".1f")}, rows)


def _networks(segmenter: Segmenter, image: Tensor) -> Iterator[dict[str, Any]]:
    """The network over all windows, from the image on the host to classes on the device."""
    ways: dict[str, Callable[[], Tensor]] = {
        _OURS: lambda: segmenter.scores(image.numpy()).argmax(0),
        _MONAI: lambda: _monai(segmenter, image, mixed=False),
        _MONAI_MIXED: lambda: _monai(segmenter, image, mixed=True),
    }
    ours = ways[_OURS]()
    for name, run in ways.items():
        found, seconds = _timed(run)
        same = float((found == ours).float().mean())
        told = f"network, {name}" + ("" if name == _OURS else f" ({same:.2%} of the voxels alike)")
        yield {"what": told, "seconds": seconds, "gigabytes": peak_gigabytes(run)}


@torch.inference_mode()
def _monai(segmenter: Segmenter, image: Tensor, mixed: bool) -> Tensor:
    from monai.inferers import sliding_window_inference

    roi = segmenter.inferer.roi_zyx
    assert roi is not None  # the run's own
    given = normalise(image.to(device()), segmenter.window)[None, None]
    with torch.autocast(device().type, enabled=mixed and device().type == "cuda"):
        logits = sliding_window_inference(given, roi, 4, segmenter.network, 0.5, cval=air(segmenter.window))
    assert isinstance(logits, Tensor)
    return logits[0].argmax(0)


def _back(segmenter: Segmenter, grid: Grid, image: Tensor) -> np.ndarray:
    return grid.scores_to_native(torch.zeros(segmenter.task.out_channels, *image.shape, device=device()))


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """(the last result, the median of the seconds)."""
    taken = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        found = run()
        if device().type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return found, median(taken)


def _trained(cfg: DictConfig, model: str) -> Path:
    """The run's folder; it is trained where it is not there."""
    options, place = cfg.gpu, Path(cfg.output).absolute() / "gpu"
    size = list(options.patch_size_zyx)
    steps = int(options.runs.steps)
    arguments = [
        *(f"model={model}", "logger=csv", f"row={model}", "name=gpu"),
        *(f"training.patch_size_zyx={size}", f"inference.roi_zyx={size}", f"training.batch_size={options.batch_size}"),
        *(f"training.max_steps={steps}", f"training.validate_every={steps}", f"training.checkpoint_every={steps}"),
        *(f"data.source.shape_zyx={list(options.runs.shape_zyx)}", f"data.source.count={options.runs.cases}"),
        *(
            f"data.spacing_zyx={list(options.runs.spacing_zyx)}",
            "data.splits.test_fraction=0.3",
            "training.log_every=5",
        ),
        *([] if options.width is None else [f"model.width={options.width}"]),
    ]
    train(place, *arguments)
    return place / "runs" / "gpu" / model / "lesion" / "seed0"


def _scan_file(cfg: DictConfig, place: Path) -> Path:
    """A phantom at clinical size as NIfTI, written once."""
    shape = tuple(int(n) for n in cfg.gpu.scan_shape_zyx)
    path = place / f"{'x'.join(map(str, shape))}.nii.gz"
    if not path.is_file():
        (small,) = scans(Path(cfg.output) / "scans", cfg.gpu.runs.shape_zyx, 1)
        image, _, spacing = enlarged(small, shape)
        write_nifti(path, image, spacing)
    return path
