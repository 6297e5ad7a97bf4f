"""Statistics of a comparison: what the mean over cases is worth, and whether two rows differ on the same cases.

The unit of sampling is the patient: scans of one patient are resampled and re-signed together. Several runs of one row
(seeds, folds) are averaged case by case first (`case_means`), so that they sharpen a case's score and do not pose as
more cases; the spread over seeds is reported beside, as `sd` of the per-seed means. All functions are pure; random ones
take a seed.
"""

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 10_000
_FEWEST_PATIENTS = 5
Case = TypeVar("Case", bound=Hashable)
_EXACT_UP_TO = 13  # patients: 2^13 sign patterns are fewer than RESAMPLES


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


@dataclass(frozen=True)
class Comparison:
    """Row minus baseline over the cases both have a score for.

    `p_permutation` (two-sided, sign flips by patient) and `p_wilcoxon` (signed ranks of patient means) are not
    corrected; `p_holm` is, within the family `compare_all` was given. `effect` is Cohen's d of paired data, mean over
    sd; `superiority` the share of cases where the row is better, ties half. `detectable` is the true difference that
    this many patients with this spread would reveal with 80 % power.
    """

    row: str
    baseline: str
    n: int
    patients: int
    difference: float
    low: float | None
    high: float | None
    p_permutation: float | None
    p_wilcoxon: float | None
    effect: float | None
    superiority: float
    detectable: float | None
    p_holm: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    sums, sizes = _by_patient(np.asarray(values, float), patients)
    n = len(sums)
    if n < _FEWEST_PATIENTS:  # their resamples hardly vary, and an interval would promise what it does not hold
        return None
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def permutation_p(
    differences: Sequence[float] | np.ndarray, patients: Sequence[Hashable], seed: int = 0
) -> float | None:
    """Two-sided p of "the paired differences are symmetric about 0": each patient's sign is flipped, or not.

    All patterns up to 13 patients, 10,000 drawn ones (the observed one counted in) beyond; None without cases.
    """
    sums, _ = _by_patient(np.asarray(differences, float), patients)
    n = len(sums)
    if n == 0:
        return None
    if n <= _EXACT_UP_TO:
        signs = np.array(list(itertools.product((1, -1), repeat=n)))
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice((1, -1), size=(RESAMPLES, n))
        extra = 1
    observed = abs(sums.sum())
    extreme = np.count_nonzero(np.abs(signs @ sums) >= observed - 1e-12 * max(1.0, observed))
    return (extreme + extra) / (len(signs) + extra)


def wilcoxon_p(differences: Sequence[float] | np.ndarray, patients: Sequence[Hashable]) -> float | None:
    """Two-sided Wilcoxon signed-rank p of the patients' mean differences; None if all are 0 or there is none."""
    sums, sizes = _by_patient(np.asarray(differences, float), patients)
    means = sums / sizes if len(sums) else sums
    return float(stats.wilcoxon(means).pvalue) if np.any(means) else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the given order; None stays None and does not count."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    worst = 0.0
    for rank, (p, index) in enumerate(known):
        worst = max(worst, min(1.0, p * (len(known) - rank)))
        adjusted[index] = worst
    return adjusted


def detectable_difference(sd: float, n: int, power: float = POWER, alpha: float = 1 - CONFIDENCE) -> float | None:
    """Smallest true mean difference that a two-sided paired t-test of n differences with this sd finds with `power`.

    Solved with the noncentral t distribution; None for n < 2. In the units of `sd`.
    """
    if n < 2:
        return None
    critical = stats.t.ppf(1 - alpha / 2, n - 1)

    def missing(noncentrality: float) -> float:
        return float(stats.nct.sf(critical, n - 1, noncentrality)) - power  # significant, and in the right direction

    upper = critical + 4
    while missing(upper) < 0:
        upper *= 2
    return float(optimize.brentq(missing, 0, upper)) * sd / math.sqrt(n)


def compare(
    row: str,
    baseline: str,
    scores: Mapping[Case, float],
    baseline_scores: Mapping[Case, float],
    patient_of: Mapping[Case, Hashable],
    higher_is_better: bool = True,
) -> Comparison | None:
    """`Comparison` of two rows' `case_means` over the cases they share; None if they share none."""
    cases = [case for case in scores if case in baseline_scores]
    if not cases:
        return None
    differences = np.array([scores[case] - baseline_scores[case] for case in cases])
    better = differences if higher_is_better else -differences
    patients = [patient_of[case] for case in cases]
    sums, sizes = _by_patient(differences, patients)
    sd = float((sums / sizes).std(ddof=1)) if len(sums) > 1 else None
    low, high = mean_interval(differences, patients) or (None, None)
    return Comparison(
        row=row,
        baseline=baseline,
        n=len(cases),
        patients=len(sums),
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_permutation=permutation_p(differences, patients),
        p_wilcoxon=wilcoxon_p(differences, patients),
        effect=float(differences.mean()) / sd if sd else None,
        superiority=float(np.mean((better > 0) + 0.5 * (better == 0))),
        detectable=None if sd is None else detectable_difference(sd, len(sums)),
    )


def compare_all(
    scores: Mapping[str, Mapping[Case, float]],
    baseline: str,
    patient_of: Mapping[Case, Hashable],
    higher_is_better: bool = True,
) -> list[Comparison]:
    """Every row against `baseline`, with Holm's correction over these comparisons. `scores`: row -> `case_means`."""
    others = {row: own for row, own in scores.items() if row != baseline}
    compared = (
        compare(row, baseline, own, scores[baseline], patient_of, higher_is_better) for row, own in others.items()
    )
    found = [comparison for comparison in compared if comparison]
    corrected = holm([comparison.p_permutation for comparison in found])
    return [Comparison(**comparison.to_dict() | {"p_holm": p}) for comparison, p in zip(found, corrected, strict=True)]


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


def _by_patient(values: np.ndarray, patients: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """(sum, number) of the values of each patient, in order of appearance."""
    index = {patient: position for position, patient in enumerate(dict.fromkeys(patients))}
    where = [index[patient] for patient in patients]
    return np.bincount(where, values, len(index)), np.bincount(where, minlength=len(index)).astype(float)
