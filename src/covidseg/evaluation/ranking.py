"""How sure the order of a table's rows is: their ranks when patients and seeds are drawn again.

After Wiesenfarth et al., Sci. Rep. 2021, 11:2369, with seeds beside cases.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from covidseg.evaluation.comparison import Case, RowScores
from covidseg.evaluation.statistics import by_patient

RESAMPLES = 1000
FEWEST_ROWS, FEWEST_PATIENTS = 3, 5


@dataclass(frozen=True)
class Ranking:
    """The rows from best to worst, and what became of their order in `RESAMPLES` resamples.

    `ranks[row][k]`: the share of resamples in which the row came in on rank k + 1; rows that tie share the better rank.
    `tau`, `tau_low`: mean and 5 % quantile of Kendall's tau-b between a resample's order and the table's own.
    """

    n: int
    patients: int
    ranks: Mapping[str, tuple[float, ...]]
    tau: float
    tau_low: float

    def interval(self, row: str) -> tuple[int, int]:
        """The ranks between which the row came in in 95 % of resamples."""
        below = np.cumsum(self.ranks[row])
        low, high = np.searchsorted(below, [0.025, 0.975 - 1e-12])
        return int(low) + 1, int(high) + 1

    def first(self, row: str) -> float:
        """How often the row was the best one."""
        return self.ranks[row][0]


def rank_rows(
    scores: Mapping[str, RowScores], patient_of: Mapping[Case, Hashable], higher_is_better: bool = True, seed: int = 0
) -> Ranking | None:
    """`Ranking` over the cases that every run has a score for; None below three rows or five patients."""
    shared = set.intersection(*(row.complete() for row in scores.values())) if scores else set()
    cases = sorted(shared, key=str)
    patients = [patient_of[case] for case in cases]
    people = len(set(patients))
    if len(scores) < FEWEST_ROWS or people < FEWEST_PATIENTS:
        return None
    draw = np.random.default_rng(seed)
    sizes = by_patient(np.zeros(len(cases)), patients)[1]
    drawn = draw.multinomial(people, [1 / people] * people, size=RESAMPLES).astype(float)
    means, own = [], []
    for row in scores.values():
        sums = np.array([by_patient(values, patients)[0] for values in row.matrix(cases)])  # (seed, patient)
        seeds = len(sums)
        weights = draw.multinomial(seeds, [1 / seeds] * seeds, size=RESAMPLES) / seeds
        means.append(np.einsum("rp,sp,rs->r", drawn, sums, weights) / (drawn @ sizes))
        own.append(sums.mean(axis=0).sum() / sizes.sum())
    sign = -1 if higher_is_better else 1
    found, truth = sign * np.array(means).T, sign * np.array(own)  # the smallest is the best
    ranks = (found[:, :, None] > found[:, None, :]).sum(axis=2)  # how many are better
    shares = np.array([np.bincount(column, minlength=len(scores)) for column in ranks.T]) / RESAMPLES
    tau = kendall_tau(found, truth)
    by_row = dict(zip(scores, (tuple(map(float, row)) for row in shares), strict=True))
    best_first = {name: by_row[name] for _, name in sorted(zip(truth, scores, strict=True))}
    return Ranking(len(cases), people, best_first, float(tau.mean()), float(np.quantile(tau, 0.05)))


def kendall_tau(orders: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each line of `orders` (n, rows) with `reference` (rows,); 0 where a line is all ties."""
    first, second = np.triu_indices(len(reference), 1)
    found = np.sign(orders[:, first] - orders[:, second])
    truth = np.sign(reference[first] - reference[second])
    untied = np.sqrt((found != 0).sum(axis=1) * (truth != 0).sum())
    return np.divide(found @ truth, untied, out=np.zeros(len(orders)), where=untied > 0)
