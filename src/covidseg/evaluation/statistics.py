"""What a mean over cases is worth: its spread, its interval, its test against 0, corrections, what could be detected.

The unit of sampling is the patient: scans of one patient are resampled and re-signed together. Several runs of one row
(seeds, folds) are averaged case by case first (`case_means`), so that they sharpen a case's score and do not pose as
more cases. What seeds mean for a difference between rows is the matter of `comparison`. All functions are pure; random
ones take a seed.
"""

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 10_000
COVERAGE = {
    5: 0.88,
    8: 0.90,
    12: 0.91,
}  # patients -> what `mean_interval` holds: experiments/statistics
FEWEST_PATIENTS = 5
Case = TypeVar("Case", bound=Hashable)
_EXACT_UP_TO = 13  # patients: 2^13 sign patterns are fewer than RESAMPLES
_HOPELESS = 1e6  # standard errors: a difference that large is no answer


@dataclass(frozen=True)
class Summary:
    """Mean over cases with its spread; `low` and `high` bound the mean with 95 % confidence, if known."""

    n: int
    patients: int
    mean: float
    sd: float | None
    median: float
    low: float | None
    high: float | None


def case_means(scores: Iterable[tuple[Case, float | None]]) -> dict[Case, float]:
    """Mean score of each case over the runs that scored it; `scores` are (case, value), None where undefined."""
    collected: dict[Case, list[float]] = {}
    for case, value in scores:
        if value is not None:
            collected.setdefault(case, []).append(value)
    return {case: math.fsum(values) / len(values) for case, values in collected.items()}


def summarise(values: Sequence[float], patients: Sequence[Hashable]) -> Summary:
    """`Summary` of one score for each case; `patients[i]` is who case i belongs to. Raises `ValueError` if empty."""
    if not len(values) or len(values) != len(patients):
        raise ValueError(f"{len(values)} values of {len(patients)} patients: needs one or more of each, equally many")
    low, high = mean_interval(values, patients) or (None, None)
    scores = np.asarray(values, float)
    sd = float(scores.std(ddof=1)) if len(scores) > 1 else None
    return Summary(len(scores), len(set(patients)), float(scores.mean()), sd, float(np.median(scores)), low, high)


def mean_interval(
    values: Sequence[float] | np.ndarray, patients: Sequence[Hashable], confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float, float] | None:
    """Bootstrap interval of the mean over cases, patients resampled whole; None for fewer than five patients.

    The percentile interval is too narrow for few patients, by the missing n/(n-1) and by the normal in place of
    Student's quantile; the percentiles are moved outwards by exactly that (the "expanded percentile interval" of
    Hesterberg, The American Statistician 2015, 69:371).
    """
    sums, sizes = by_patient(np.asarray(values, float), patients)
    n = len(sums)
    if n < FEWEST_PATIENTS:  # their resamples hardly vary, and an interval would promise what it does not hold
        return None
    times = _resamples(n, RESAMPLES, seed)
    means = (times @ sums) / (times @ sizes)
    tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def permutation_p(
    differences: Sequence[float] | np.ndarray, patients: Sequence[Hashable], seed: int = 0
) -> float | None:
    """Two-sided p of "the paired differences are symmetric about 0": each patient's sign is flipped, or not.

    All patterns up to 13 patients, 10,000 drawn ones (the observed one counted in) beyond; None without cases.
    """
    sums, _ = by_patient(np.asarray(differences, float), patients)
    n = len(sums)
    if n == 0:
        return None
    if n <= _EXACT_UP_TO:
        signs, extra = _all_signs(n), 0
    else:
        signs, extra = _drawn_signs(n, RESAMPLES, seed), 1
    observed = abs(sums.sum())
    extreme = np.count_nonzero(np.abs(signs @ sums) >= observed - 1e-12 * max(1.0, observed))
    return (extreme + extra) / (len(signs) + extra)


def smallest_p(patients: int) -> float:
    """The smallest value that `permutation_p` can have with so many patients."""
    return max(2.0 ** (1 - patients), 0.0 if patients <= _EXACT_UP_TO else 1 / (RESAMPLES + 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the given order; None stays None and does not count."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    worst = 0.0
    for rank, (p, index) in enumerate(known):
        worst = max(worst, min(1.0, p * (len(known) - rank)))
        adjusted[index] = worst
    return adjusted


def p_text(p: float | None, smallest: float = 0.0) -> str:
    """`0.012`, `< 0.001`, or `≤ 0.0002` where p is at the `smallest` that its test can give (0: there is no such)."""
    if p is None:
        return "–"
    if smallest and p <= smallest * (1 + 1e-9):
        return f"≤ {_rounded_up(p)}"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def detectable_difference(
    standard_error: float, df: float, alpha: float = 1 - CONFIDENCE, power: float = POWER
) -> float | None:
    """Smallest true difference that a two-sided t test at `alpha` finds with `power`, in units of the standard error's.

    `df`: degrees of freedom, at least 1, of the standard error's estimate. Solved with the noncentral t distribution;
    None where it has no finite solution.
    """
    critical = float(stats.t.ppf(1 - alpha / 2, df)) if df >= 1 else math.inf
    if not critical < _HOPELESS:
        return None

    def missing(noncentrality: float) -> float:
        return float(stats.nct.sf(critical, df, noncentrality)) - power  # significant, and in the right direction

    upper = critical + 4
    while missing(upper) < 0:
        upper *= 2
        if upper > _HOPELESS:
            return None
    return float(optimize.brentq(missing, 0, upper)) * standard_error


def breaks_dice_law(means: Sequence[float | None], rounding: float = 0.0) -> bool:
    """Whether three means over the same cases, of Dice, sensitivity and precision, cannot all be right.

    For each case Dice = 2SP/(S+P), which lies between S+P-1 and (S+P)/2; the mean over cases keeps both bounds.
    `rounding` is the half unit in the last printed place, 0.0005 for three digits: it is granted to all three.
    """
    dice, sensitivity, precision = means
    if dice is None or sensitivity is None or precision is None:
        return False
    slack = 1e-9
    too_high = dice - (sensitivity + precision) / 2 > 2 * rounding + slack
    too_low = (sensitivity + precision - 1) - dice > 3 * rounding + slack
    return too_high or too_low


def by_patient(values: np.ndarray, patients: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """(sum, number) of the values of each patient, in order of appearance."""
    index = {patient: position for position, patient in enumerate(dict.fromkeys(patients))}
    where = [index[patient] for patient in patients]
    return np.bincount(where, values, len(index)), np.bincount(where, minlength=len(index)).astype(float)


def _all_signs(n: int) -> np.ndarray:
    return np.array(list(itertools.product((1.0, -1.0), repeat=n)))


def _rounded_up(p: float) -> str:
    """p with three decimal places, or with the one digit that counts; never less than p, never above 1."""
    shown = math.ceil(round(p * 1000, 6)) / 1000
    if p >= 0.001:
        return f"{min(shown, 1.0):.3f}"
    exponent = math.floor(math.log10(p))
    digit = math.ceil(round(p / 10**exponent, 6))
    return f"{digit * 10**exponent:.{-exponent - digit // 10}f}"


@lru_cache(maxsize=4)  # all rows and metrics of a table have the same patients
def _drawn_signs(n: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice((1.0, -1.0), size=(count, n))


@lru_cache(maxsize=4)
def _resamples(n: int, count: int, seed: int) -> np.ndarray:
    """How often each of n patients is drawn in each of `count` resamples: (count, n)."""
    drawn = np.random.default_rng(seed).integers(n, size=(count, n))
    drawn += np.arange(count)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(float)
