"""Whether two rows of a table differ on the same cases, where a row is a method and a run of it one draw of a seed.

One trained network differs from the next one of the same method by its seed. A test over patients alone takes that for
a property of the method: with 130 patients and a seed's sd of 0.01 Dice it calls two equal methods different in a third
of trials (`experiments/statistics`). So from two seeds of each row on, seeds are a random factor beside patients, as
readers are in a reader study: the mixed model of Obuchowski & Rockette (Commun. Stat. Simul. 1995, 24:285) with seeds
nested in rows (Hillis, Stat. Med. 2014, 33:330),

    score = row + seed(row) + patient + row x patient + rest.

The variance of a difference is what the seeds' means vary by, plus what the patients' differences vary by beyond the
rest, which the seeds' means hold already; its degrees of freedom are Satterthwaite's. With one seed the comparison is
of two trained networks, and each patient's sign is flipped, or not.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy import stats

from covidseg.evaluation.statistics import (
    CONFIDENCE,
    FEWEST_PATIENTS,
    by_patient,
    detectable_difference,
    holm,
    mean_interval,
    p_text,
    permutation_p,
    smallest_p,
)

Case = Any  # hashable
OF_METHODS, OF_NETWORKS = "methods", "trained networks"


@dataclass(frozen=True)
class RowScores:
    """Scores of one row: seed -> case -> score. `learned`: whether another seed would have given other scores."""

    by_seed: Mapping[Any, Mapping[Case, float]]
    learned: bool = True

    @property
    def seeds_vary(self) -> bool:
        """Whether the spread over seeds is known, or there is none."""
        return not self.learned or len(self.by_seed) > 1

    def complete(self) -> set[Case]:
        """The cases that every seed has a score of."""
        return set.intersection(*(set(scores) for scores in self.by_seed.values()))

    def matrix(self, cases: Sequence[Case]) -> np.ndarray:
        """(seed, case)."""
        return np.array([[scores[case] for case in cases] for scores in self.by_seed.values()], float)


@dataclass(frozen=True)
class Comparison:
    """Row minus baseline over the cases that each of their runs has a score for.

    `of`: `methods` where the spread over seeds is in the test, `trained networks` where it cannot be. `p` is two-sided
    and not corrected; `p_holm` is, within the family that `compare_all` was given; `smallest_p` is what `p` cannot be
    below with so many patients, 0 where there is no such limit. `effect` is Cohen's d of paired data, mean over sd of
    the patients' differences; `superiority` the share of cases where the row is better, ties half. `detectable` is the
    true difference that this design and spread reveal with 80 % power, by this test at the level that the correction
    leaves; None where no result could be significant.
    """

    row: str
    baseline: str
    metric: str
    of: str
    n: int
    patients: int
    seeds: tuple[int, int]
    difference: float
    low: float | None
    high: float | None
    p: float | None
    smallest_p: float
    effect: float | None
    superiority: float
    standard_error: float | None = field(repr=False)
    df: float | None = field(repr=False)
    detectable: float | None = None
    p_holm: float | None = None
    family: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def p_text(self) -> str:
        return p_text(self.p, self.smallest_p)

    @property
    def p_holm_text(self) -> str:
        at_limit = self.p is not None and self.p <= self.smallest_p * (1 + 1e-9)
        return p_text(self.p_holm, (self.p_holm or 0.0) if at_limit else 0.0)

    @property
    def is_significant(self) -> bool:
        """At 5 %, corrected."""
        return self.p_holm is not None and self.p_holm <= 1 - CONFIDENCE

    @property
    def can_be_significant(self) -> bool:
        """Whether the smallest possible p survives the correction over the whole family."""
        return self.p is not None and self.smallest_p * self.family <= 1 - CONFIDENCE


def compare(
    row: str,
    baseline: str,
    scores: RowScores,
    baseline_scores: RowScores,
    patient_of: Mapping[Case, Hashable],
    metric: str = "dice",
    higher_is_better: bool = True,
) -> Comparison | None:
    """`Comparison` of two rows; None if no case was scored by every run of both."""
    shared = scores.complete() & baseline_scores.complete()
    cases = [case for case in next(iter(scores.by_seed.values())) if case in shared]
    if not cases:
        return None
    ours, theirs = scores.matrix(cases), baseline_scores.matrix(cases)
    differences = ours.mean(axis=0) - theirs.mean(axis=0)
    patients = [patient_of[case] for case in cases]
    sums, sizes = by_patient(differences, patients)
    mean, by_person = float(differences.mean()), sums / sizes
    sd = float(by_person.std(ddof=1)) if len(sums) > 1 else 0.0
    better = differences if higher_is_better else -differences
    of_methods = scores.seeds_vary and baseline_scores.seeds_vary
    error = difference_error(*(_influence(values, patients) for values in (ours, theirs)))
    if of_methods and (scores.learned or baseline_scores.learned):
        p, least, (low, high) = error.p(mean), 0.0, error.interval(mean)
    else:
        p, least = permutation_p(differences, patients), smallest_p(len(sums))
        low, high = mean_interval(differences, patients) or (None, None)
    return Comparison(
        row=row,
        baseline=baseline,
        metric=metric,
        of=OF_METHODS if of_methods else OF_NETWORKS,
        n=len(cases),
        patients=len(sums),
        seeds=(len(scores.by_seed), len(baseline_scores.by_seed)),
        difference=mean,
        low=low,
        high=high,
        p=p,
        smallest_p=least,
        effect=mean / sd if sd else None,
        superiority=float(np.mean((better > 0) + 0.5 * (better == 0))),
        standard_error=error.standard_error,
        df=error.df,
    )


def compare_all(
    scores: Mapping[str, Mapping[str, RowScores]],
    pairs: Iterable[tuple[str, str]],
    patient_of: Mapping[Case, Hashable],
    higher_is_better: Mapping[str, bool] | None = None,
) -> list[Comparison]:
    """Every pair (row, baseline) in every metric, with Holm's correction over all of these comparisons.

    `scores`: metric -> row -> `RowScores`. Pairs of which a row has no score, or that share no case, are left out.
    """
    direction = higher_is_better or {}
    wanted = list(pairs)
    compared = [
        compare(row, base, rows[row], rows[base], patient_of, metric, direction.get(metric, True))
        for metric, rows in scores.items()
        for row, base in wanted
        if row in rows and base in rows
    ]
    found = [one for one in compared if one is not None]
    tested = sum(one.p is not None for one in found)
    corrected = holm([one.p for one in found])
    return [_in_family(one, p, tested) for one, p in zip(found, corrected, strict=True)]


@dataclass(frozen=True)
class DifferenceError:
    """What a difference of two rows' means is uncertain by: its standard error, and the df that this is known with."""

    standard_error: float | None
    df: float | None

    def p(self, difference: float) -> float | None:
        """Two-sided p of "the true difference is 0"; None where the error is unknown."""
        if self.standard_error is None or self.df is None:
            return None
        if not self.standard_error:
            return 1.0 if not difference else 0.0
        return float(2 * stats.t.sf(abs(difference) / self.standard_error, self.df))

    def interval(self, difference: float) -> tuple[float, float] | tuple[None, None]:
        """95 % confidence interval of the difference."""
        if self.standard_error is None or self.df is None:
            return None, None
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.df)) * self.standard_error
        return difference - reach, difference + reach


def difference_error(ours: np.ndarray, theirs: np.ndarray) -> DifferenceError:
    """`DifferenceError` from two tables (seed, patient) of the same patients; a row of one seed adds none of its own.

    Satterthwaite's df take the variance parts as known up to their own df. With very few seeds they are not, so the
    seeds' part weighs more by 1/(2 (S-1)), S the fewer seeds of the two. In simulations (`experiments/statistics`,
    tests/evaluation/test_comparison.py) the test then keeps its level from two seeds on.
    """
    n = ours.shape[1]
    if n < FEWEST_PATIENTS:
        return DifferenceError(None, None)
    parts = [_seed_parts(table) for table in (ours, theirs) if len(table) > 1]
    between = float((ours.mean(axis=0) - theirs.mean(axis=0)).var(ddof=1)) / n
    seeds = math.fsum(of_seeds for of_seeds, _, _ in parts)
    rest = math.fsum(of_rest for _, of_rest, _ in parts)
    variance = seeds + max(between - rest, 0.0)
    if not variance:
        return DifferenceError(0.0, float(n - 1))
    uncertain = between**2 / (n - 1) + math.fsum(of_rest**2 / (df * (n - 1)) for _, of_rest, df in parts)
    if parts:
        caution = 1 + 1 / (2 * min(df for _, _, df in parts))
        uncertain += caution * math.fsum(of_seeds**2 / df for of_seeds, _, df in parts)
    return DifferenceError(math.sqrt(variance), max(variance**2 / uncertain, 1.0))


def _seed_parts(table: np.ndarray) -> tuple[float, float, int]:
    """Of a table's (seed, patient) mean: its variance by the seeds' means, the rest's share of that, the seeds' df."""
    seeds, n = table.shape
    means = table.mean(axis=1, keepdims=True)
    rest = table - means - table.mean(axis=0, keepdims=True) + table.mean()
    df = seeds - 1
    return float(means.var(ddof=1)) / seeds, float((rest**2).sum()) / (df * (n - 1)) / (n * seeds), df


def _influence(values: np.ndarray, patients: Sequence[Hashable]) -> np.ndarray:
    """(seed, patient) of what each patient adds to the mean over cases, from values (seed, case).

    The mean over patients of these is the mean over cases, and their spread its error (linearised, for patients with
    several scans).
    """
    tables = []
    for scores in values:
        sums, sizes = by_patient(scores, patients)
        mean = sums.sum() / sizes.sum()
        tables.append(mean + (sums - mean * sizes) / sizes.mean())
    return np.array(tables)


def _in_family(one: Comparison, p_holm: float | None, family: int) -> Comparison:
    corrected = replace(one, p_holm=p_holm, family=family)
    if not one.standard_error or one.df is None or not corrected.can_be_significant:
        return corrected
    alpha = (1 - CONFIDENCE) / family
    return replace(corrected, detectable=detectable_difference(one.standard_error, one.df, alpha))
