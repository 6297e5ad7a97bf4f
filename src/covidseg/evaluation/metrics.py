"""Whole-volume metrics of one structure in one case, and their summary over cases.

A metric is one entry of `METRICS`: columns, tables, the terminal, W&B and the tests follow from it. Each entry says
what it is where a mask is empty, because a mean is only as honest as its treatment of empty masks. A case whose
reference is empty is counted as such, with a prediction as a false alarm, too; one none of whose voxels was found as
missed.
An undefined value is None, stays out of the mean, and the summary gives each mean its own n beside those counts.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from covidseg.evaluation.lesions import lesion_f1
from covidseg.evaluation.surface_metrics import surface_scores
from covidseg.scans.geometry import union_box

COUNTS, VOLUMES = ("tp", "fp", "fn"), ("reference_ml", "prediction_ml")  # of voxels; in ml
REASONS = ("empty reference", "empty prediction", "both masks empty", "not computed")  # why a metric is undefined
_EMPTY_REFERENCE, _EMPTY_PREDICTION, _BOTH_EMPTY, _NOT_COMPUTED = REASONS
UNDEFINED, BY_FORMULA = None, "by formula"  # what a metric may be where a mask is empty, beside a number


@dataclass(frozen=True)
class MaskPair:
    """A prediction and its reference, boolean (z, y, x) of one shape, and what several metrics need of them."""

    prediction: np.ndarray
    reference: np.ndarray
    spacing_zyx: Sequence[float]  # mm
    tolerance_mm: float

    @cached_property
    def predicted(self) -> int:
        return int(np.count_nonzero(self.prediction))

    @cached_property
    def present(self) -> int:
        return int(np.count_nonzero(self.reference))

    @cached_property
    def tp(self) -> int:
        return int(np.count_nonzero(self.prediction & self.reference))

    @cached_property
    def voxel_ml(self) -> float:
        return math.prod(self.spacing_zyx) / 1000

    @cached_property
    def cropped(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and reference in the box that holds both: most of a scan is neither."""
        box = union_box(self.prediction, self.reference)
        return self.prediction[box], self.reference[box]

    @cached_property
    def surfaces(self) -> tuple[float, float]:
        """(NSD, HD95 in mm)."""
        return surface_scores(*self.cropped, self.spacing_zyx, self.tolerance_mm)


@dataclass(frozen=True)
class Metric:
    """What is known of one metric.

    `formula` is asked where neither mask is empty; elsewhere the value is `false_alarm` (only the reference is empty),
    `missed` (only the prediction is) or `both_empty`: a number, `UNDEFINED` or `BY_FORMULA`. A metric without a unit is
    a share between 0 and 1, any other is 0 or more. `slow` ones take seconds for the ragged masks of an early network
    and are left out during training. `in_paper` are those of the paper's tables, in their order.
    """

    name: str  # in `case_metrics` and metrics.json
    title: str
    formula: Callable[[MaskPair], float]
    definition: str  # for docs/reference.md; P is the prediction, R the reference
    false_alarm: float | str | None
    missed: float | str | None
    both_empty: float | str | None = UNDEFINED
    higher_is_better: bool = True
    unit: str = ""
    digits: int = 3
    slow: bool = False
    in_paper: bool = False
    short: str = ""  # title for narrow tables

    @property
    def column(self) -> str:
        """Of cases.csv and table.csv."""
        return f"{self.name}_{self.unit}" if self.unit else self.name

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def narrow(self) -> str:
        return self.short or self.title

    @property
    def greatest(self) -> float:
        return math.inf if self.unit else 1.0

    def of(self, pair: MaskPair) -> float | None:
        """The value of a pair of masks, None where it is undefined."""
        policy = self._policy(pair)
        return self.formula(pair) if isinstance(policy, str) else policy

    def text(self, value: float | None, absent: str = "-") -> str:
        """The value as tables show it, without its unit."""
        return absent if value is None else f"{value:.{self.digits}f}"

    def _policy(self, pair: MaskPair) -> float | str | None:
        if pair.present:
            return BY_FORMULA if pair.predicted else self.missed
        return self.false_alarm if pair.predicted else self.both_empty


METRICS = (
    Metric(
        "dice", "Dice", lambda pair: 2 * pair.tp / (pair.predicted + pair.present),
        "2 |P and R| / (|P| + |R|) (paper, eq. 10)",
        false_alarm=0.0, missed=0.0, in_paper=True,
    ),
    Metric(
        "sensitivity", "sensitivity", lambda pair: pair.tp / pair.present,
        "|P and R| / |R| (paper, IV-B)",
        false_alarm=UNDEFINED, missed=0.0, in_paper=True, short="Sens.",
    ),
    Metric(
        "precision", "precision", lambda pair: pair.tp / pair.predicted,
        "|P and R| / |P| (paper, IV-B)",
        false_alarm=0.0, missed=UNDEFINED, in_paper=True, short="Prec.",
    ),
    Metric(
        "nsd", "NSD", lambda pair: pair.surfaces[0],
        "share of both surfaces that lies within the tolerance of the other one: 1 mm for lungs, 3 mm for lesions, "
        "with the surface elements of the COVID-19-CT-Seg benchmark",
        false_alarm=0.0, missed=0.0, slow=True,
    ),
    Metric(
        "hd95", "HD95", lambda pair: pair.surfaces[1],
        "the greater of the two directed 95th percentiles of surface distances",
        false_alarm=UNDEFINED, missed=UNDEFINED, higher_is_better=False, unit="mm", digits=1, slow=True,
    ),
    Metric(
        "lesion_f1", "lesion-wise F1", lambda pair: lesion_f1(*pair.cropped),
        "harmonic mean of the share of R's lesions that were found and the share of P's that are right. A lesion is a "
        "part connected over faces, edges or corners; it is found, or right, if a tenth of its voxels lie in the other "
        "mask. So a lesion that P splits is found once, and one of P that merges several of R's is right once and "
        "finds each of them",
        false_alarm=0.0, missed=0.0, slow=True,
    ),
    Metric(
        "volume_error", "volume error", lambda pair: abs(pair.predicted - pair.present) * pair.voxel_ml,
        "difference of the volumes of P and R, without its sign (`prediction_ml` and `reference_ml` stand beside it)",
        false_alarm=BY_FORMULA, missed=BY_FORMULA, both_empty=0.0, higher_is_better=False, unit="ml", digits=1,
    ),
)  # fmt: skip
BY_COLUMN = {metric.column: metric for metric in METRICS}
IN_PAPER = tuple(metric for metric in METRICS if metric.in_paper)  # Dice, sensitivity, precision


def case_metrics(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_zyx: Sequence[float],
    tolerance_mm: float,
    slow: bool = True,
) -> dict[str, Any]:
    """Scores of a binary `prediction` against a binary `reference`, both (z, y, x) on the scan's own grid.

    Each of `METRICS` by its name (`nsd` as the COVID-19-CT-Seg benchmark computes it, within `tolerance_mm`); the voxel
    counts `tp`, `fp`, `fn`, `tn`; `reference_ml`, `prediction_ml`; and `undefined`, a reason for each metric that is
    None. `slow=False` leaves out the metrics that take seconds for the ragged predictions of an untrained network.

    Raises `ValueError` for unequal shapes (numpy would broadcast them and report a Dice above 1), for values that are
    not 0 and 1, and for a spacing or tolerance that is not positive.
    """
    prediction, reference = _binary(prediction, "prediction"), _binary(reference, "reference")
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, reference {reference.shape}; they must be equal")
    spacing = [float(step) for step in spacing_zyx]
    if len(spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in (*spacing, tolerance_mm)):
        raise ValueError(f"spacing_zyx {spacing} needs three positive numbers, tolerance_mm {tolerance_mm} one")

    pair = MaskPair(prediction, reference, spacing, tolerance_mm)
    computed = [metric for metric in METRICS if slow or not metric.slow]
    values = dict.fromkeys(metric.name for metric in METRICS) | {metric.name: metric.of(pair) for metric in computed}
    undefined = {name: _NOT_COMPUTED for name, value in values.items() if value is None}
    undefined |= {metric.name: _why_undefined(pair) for metric in computed if metric.name in undefined}
    fp, fn = pair.predicted - pair.tp, pair.present - pair.tp
    return {
        **values,
        "tp": pair.tp,
        "fp": fp,
        "fn": fn,
        "tn": prediction.size - pair.tp - fp - fn,
        "reference_ml": pair.present * pair.voxel_ml,
        "prediction_ml": pair.predicted * pair.voxel_ml,
        "undefined": undefined,
    }


def _why_undefined(pair: MaskPair) -> str:
    if pair.predicted:
        return _EMPTY_REFERENCE
    return _EMPTY_PREDICTION if pair.present else _BOTH_EMPTY


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
    for metric in METRICS:
        values = [row[metric.name] for row in rows if row[metric.name] is not None]
        summary[metric.name] = {
            "mean": statistics.fmean(values) if values else None,
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "median": statistics.median(values) if values else None,
            "n": len(values),
        }
    return summary


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
