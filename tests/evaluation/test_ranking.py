import numpy as np
import pytest
from scipy import stats

from covidseg.evaluation.comparison import RowScores
from covidseg.evaluation.ranking import kendall_tau, rank_rows


def rows(gaps, patients=15, seeds=2, noise=0.02):
    draw = np.random.default_rng(0)
    return {
        f"r{index}": RowScores(
            {seed: {case: 0.5 + gap + draw.normal(0, noise) for case in range(patients)} for seed in range(seeds)}
        )
        for index, gap in enumerate(gaps)
    }


def test_kendalls_tau_is_scipys():
    draw = np.random.default_rng(1)
    orders = np.round(draw.normal(size=(40, 6)), 0)  # with ties
    reference = np.round(draw.normal(size=6), 1)
    theirs = [stats.kendalltau(order, reference).statistic for order in orders]
    assert kendall_tau(orders, reference) == pytest.approx(np.nan_to_num(theirs))


def test_rows_far_apart_keep_their_ranks():
    found = rank_rows(rows([0.0, 0.3, 0.15]), {case: case for case in range(15)})
    assert list(found.ranks) == ["r1", "r2", "r0"]
    assert [found.interval(name) for name in found.ranks] == [(1, 1), (2, 2), (3, 3)]
    assert found.first("r1") == 1 and found.tau == found.tau_low == 1
    reverse = rank_rows(rows([0.0, 0.3, 0.15]), {case: case for case in range(15)}, higher_is_better=False)
    assert list(reverse.ranks) == ["r0", "r2", "r1"]


def test_equal_rows_share_the_ranks():
    found = rank_rows(rows([0.0, 0.0, 0.0], noise=0.1), {case: case for case in range(15)})
    assert all(sum(shares) == pytest.approx(1) for shares in found.ranks.values())
    assert max(found.first(name) for name in found.ranks) < 0.9
    assert all(found.interval(name)[1] > 1 for name in found.ranks)
    assert found.tau < 0.9


def test_seeds_are_drawn_too():
    """Two rows that differ by seed alone, over patients that do not differ at all."""
    scores = {
        name: RowScores({seed: dict.fromkeys(range(10), value) for seed, value in enumerate(values)})
        for name, values in {"a": (0.5, 0.7), "b": (0.55, 0.6), "c": (0.1, 0.1)}.items()
    }
    found = rank_rows(scores, {case: case for case in range(10)})
    assert list(found.ranks) == ["a", "b", "c"]
    assert 0.55 < found.first("a") < 0.95  # b's mean is better when a's worse seed is drawn twice


def test_two_rows_or_few_patients_have_no_ranking():
    assert rank_rows(rows([0.0, 0.1]), {case: case for case in range(15)}) is None
    assert rank_rows(rows([0.0, 0.1, 0.2], patients=4), {case: case for case in range(4)}) is None
    assert rank_rows({}, {}) is None
