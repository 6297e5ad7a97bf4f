"""Whether predicted and reference volumes can stand for each other: bias, limits of agreement, ICC."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_FEWEST = 3


@dataclass(frozen=True)
class Agreement:
    """Of n predicted volumes with their references, in ml.

    `bias`: mean of prediction minus reference; `low`, `high`: the 95 % limits of agreement, bias -/+ 1.96 sd (Bland &
    Altman, Lancet 1986, 327:307); `error`: mean absolute difference; `icc`: ICC(A,1). The last four None for fewer
    than three cases, `icc` also where all volumes are the same.
    """

    n: int
    bias: float
    low: float | None
    high: float | None
    error: float
    icc: float | None


@dataclass(frozen=True)
class Volumes:
    """Predicted against reference volumes of one method at one site."""

    method: str
    site: str
    agreement: Agreement
    prediction_ml: tuple[float, ...]
    reference_ml: tuple[float, ...]


def volume_agreement(prediction_ml: Sequence[float], reference_ml: Sequence[float]) -> Agreement:
    """`Agreement` of one predicted and one reference volume for each case. Raises `ValueError` if there is none."""
    predicted, reference = np.asarray(prediction_ml, float), np.asarray(reference_ml, float)
    if not len(predicted) or len(predicted) != len(reference):
        raise ValueError(f"{len(predicted)} predicted and {len(reference)} reference volumes: needs a pair or more")
    differences = predicted - reference
    bias, error = float(differences.mean()), float(np.abs(differences).mean())
    if len(differences) < _FEWEST:
        return Agreement(len(differences), bias, None, None, error, None)
    reach = 1.96 * float(differences.std(ddof=1))
    return Agreement(
        len(differences), bias, bias - reach, bias + reach, error, icc(np.stack([predicted, reference], 1))
    )


def icc(table: np.ndarray) -> float | None:
    """ICC(A,1) of a table (target, rater): two-way, absolute agreement of single ratings.

    McGraw & Wong, Psychological Methods 1996, 1:30, table 4; None for fewer than two targets or ratings all alike.
    """
    n, k = table.shape
    if n < 2:
        return None
    mean = table.mean()
    rows = k * ((table.mean(axis=1) - mean) ** 2).sum() / (n - 1)
    columns = n * ((table.mean(axis=0) - mean) ** 2).sum() / (k - 1)
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + mean
    error = (rest**2).sum() / ((n - 1) * (k - 1))
    whole = rows + (k - 1) * error + k / n * (columns - error)
    return float((rows - error) / whole) if not math.isclose(whole, 0, abs_tol=1e-30) else None
