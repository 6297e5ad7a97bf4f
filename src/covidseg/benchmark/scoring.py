"""The suite `scoring`: NSD and HD95 of a lung against a slightly different one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from scipy import ndimage

from covidseg.benchmark.contest import OURS, USUAL, Contender, Contest
from covidseg.benchmark.scans import enlarged, scans
from covidseg.evaluation.surface_metrics import surface_scores

_TOLERANCE_MM = 1.0
_SAME = 0.02  # of NSD; their HD95 may differ by a quarter, where border voxels are weighted by the area they stand for


def contests(cfg: DictConfig) -> list[Contest]:
    """One, of all who measure surfaces."""
    options = cfg.scoring
    (scan,) = scans(Path(cfg.output) / "scans", cfg.loader.shape_zyx, 1)
    _, labels, spacing = enlarged(scan, options.shape_zyx)
    reference = labels > 0
    prediction = np.roll(ndimage.binary_dilation(reference), 1, axis=2)

    ways = [
        Contender("covidseg", OURS, lambda: lambda: surface_scores(prediction, reference, spacing, _TOLERANCE_MM)),
        Contender("MONAI", USUAL, lambda: _monai(prediction, reference, spacing)),
        Contender("surface-distance", USUAL, lambda: _surface_distance(prediction, reference, spacing)),
    ]
    z, y, x = options.shape_zyx
    return [Contest(f"scoring: NSD and HD95 of a lung, {x} x {y} x {z}", ways, 1, options.rounds, _alike)]


def _alike(found: Mapping[str, tuple[float, float]]) -> str:
    nsd, hd95 = found["covidseg"]
    for name, (theirs, distance) in found.items():
        if abs(theirs - nsd) > _SAME or abs(distance - hd95) > 0.25 * max(hd95, 1.0):
            raise AssertionError(f"{name} says NSD {theirs:.4f}, HD95 {distance:.3f} mm; ours {nsd:.4f}, {hd95:.3f}")
    return "; ".join(f"{name}: NSD {nsd:.4f}, HD95 {mm:.3f} mm" for name, (nsd, mm) in found.items()) + "."


def _monai(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> Callable[[], Any]:
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, reference)]

    def run() -> tuple[float, float]:
        # Two classes, of which the first is left out as their background.
        mine, theirs = (torch.cat([~mask, mask], dim=1) for mask in pair)
        nsd = compute_surface_dice(mine, theirs, [_TOLERANCE_MM], spacing=spacing, use_subvoxels=True)
        hd95 = compute_hausdorff_distance(mine, theirs, percentile=95, spacing=spacing)
        return float(nsd), float(hd95)

    return run


def _surface_distance(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> Callable[[], Any]:
    from surface_distance import metrics

    def run() -> tuple[float, float]:
        found = metrics.compute_surface_distances(reference, prediction, spacing)
        nsd = metrics.compute_surface_dice_at_tolerance(found, _TOLERANCE_MM)
        return float(nsd), float(metrics.compute_robust_hausdorff(found, 95))

    return run
