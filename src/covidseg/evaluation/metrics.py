"""Whole-volume metrics of one structure in one case, and their summary over cases.

Policy for empty masks, because a mean is only as honest as its treatment of them:

| reference | prediction | Dice | sensitivity | precision | NSD | HD95 | counted as |
|---|---|---|---|---|---|---|---|
| empty | empty | undefined | undefined | undefined | undefined | undefined | empty reference |
| empty | not | 0 | undefined | 0 | 0 | undefined | empty reference, false alarm |
| not | empty | 0 | 0 | undefined | 0 | undefined | missed |
| not | not, no voxel shared | 0 | 0 | 0 | computed | computed | missed |

An undefined value is None, stays out of the mean, and the summary gives each mean its own n beside those counts.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from covidseg.evaluation.surface_metrics import surface_scores

METRICS = ("dice", "sensitivity", "precision", "nsd", "hd95")
COUNTS, VOLUMES = ("tp", "fp", "fn"), ("reference_ml", "prediction_ml")  # of voxels; in ml
REASONS = ("empty reference", "empty prediction", "both masks empty", "not computed")  # why a metric is undefined
_EMPTY_REFERENCE, _EMPTY_PREDICTION, _BOTH_EMPTY, _NOT_COMPUTED = REASONS


def case_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_zyx: Sequence[float],
    tolerance_mm: float,
    surfaces: bool = True,
) -> dict[str, Any]:
    """Scores of a binary `prediction` against a binary `reference`, both (z, y, x) on the scan's own grid.

    Dice = 2 tp / (2 tp + fp + fn) (eq. 10), sensitivity = tp / (tp + fn), precision = tp / (tp + fp) (IV-B); `nsd`, the
    share of the two surfaces within `tolerance_mm` of the other one, as the COVID-19-CT-Seg benchmark computes it;
    `hd95` in mm, the greater of the two directed 95th percentiles of surface distances; the counts `tp`, `fp`, `fn`,
    `tn`; `reference_ml`, `prediction_ml`; and `undefined`, a reason for each metric that is None. `surfaces=False`
    leaves out NSD and HD95, which take seconds for the ragged predictions of an untrained network.

    Raises `ValueError` for unequal shapes (numpy would broadcast them and report a Dice above 1), for values that are
    not 0 and 1, and for a spacing or tolerance that is not positive.
    """
    prediction, reference = _binary(prediction, "prediction"), _binary(reference, "reference")
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; they must be equal")
    spacing = [float(step) for step in spacing_zyx]
    if len(spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in (*spacing, tolerance_mm)):
        raise ValueError(f"spacing_zyx {spacing} needs three positive numbers, tolerance_mm {tolerance_mm} one")

    predicted, present = (int(np.count_nonzero(mask)) for mask in (prediction, reference))
    tp = int(np.count_nonzero(prediction & reference))
    fp, fn = predicted - tp, present - tp
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    if predicted or present:
        values["dice"] = 2 * tp / (2 * tp + fp + fn)
    if present:
        values["sensitivity"] = tp / present
    if predicted:
        values["precision"] = tp / predicted
    if surfaces and predicted and present:
        box = union_box(prediction, reference)  # most of a scan is neither
        values["nsd"], values["hd95"] = surface_scores(prediction[box], reference[box], spacing, tolerance_mm)
    elif surfaces and (predicted or present):
        values["nsd"] = 0.0

    reason = _why_undefined(bool(present), bool(predicted))
    undefined = {name: reason for name, value in values.items() if value is None}
    if not surfaces:
        undefined |= dict.fromkeys(("nsd", "hd95"), _NOT_COMPUTED)
    voxel_ml = math.prod(spacing) / 1000
    return {
        **values,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": prediction.size - tp - fp - fn,
        "reference_ml": present * voxel_ml,
        "prediction_ml": predicted * voxel_ml,
        "undefined": undefined,
    }


def _why_undefined(present: bool, predicted: bool) -> str:
    if predicted:
        return _EMPTY_REFERENCE
    return _EMPTY_PREDICTION if present else _BOTH_EMPTY


def summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Summary of `case_metrics` results over the cases of one structure.

    `n`, `n_empty_reference`, `n_missed` (a reference of which no voxel was found), `n_false_alarm` (a prediction where
    the reference is empty), and for each metric its `mean`, `sd` (of the sample, None for n < 2), `median` and own `n`.
    """
    rows = list(rows)
    present = [row["tp"] + row["fn"] > 0 for row in rows]
    summary: dict[str, Any] = {
        "n": len(rows),
        "n_empty_reference": present.count(False),
        "n_missed": sum(there and row["tp"] == 0 for row, there in zip(rows, present, strict=True)),
        "n_false_alarm": sum(not there and row["fp"] > 0 for row, there in zip(rows, present, strict=True)),
    }
    for name in METRICS:
        values = [row[name] for row in rows if row[name] is not None]
        summary[name] = {
            "mean": statistics.fmean(values) if values else None,
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "median": statistics.median(values) if values else None,
            "n": len(values),
        }
    return summary


def union_box(*masks: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """Smallest box that holds every True voxel of the masks, `margin` voxels wider where the array allows it."""
    union = np.logical_or.reduce(masks)
    box = []
    for axis in range(union.ndim):
        hit = np.flatnonzero(union.any(axis=tuple(other for other in range(union.ndim) if other != axis)))
        box.append(slice(max(hit[0] - margin, 0), hit[-1] + 1 + margin) if hit.size else slice(0, 0))
    return tuple(box)


def _binary(mask: np.ndarray, name: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise ValueError(f"{name} has shape {mask.shape}; it must be (z, y, x)")
    if mask.dtype == bool:
        return mask
    binary = mask != 0
    if not np.array_equal(binary, mask):
        raise ValueError(f"{name} holds values other than 0 and 1; pass one structure at a time")
    return binary
