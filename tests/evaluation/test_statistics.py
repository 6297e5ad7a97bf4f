import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from covidseg.evaluation import statistics as ours


def own_patient(values):
    return list(range(len(values)))


def test_summary_agrees_with_scipy():
    values = np.random.default_rng(0).beta(5, 2, size=30)
    summary = ours.summarise(values, own_patient(values))
    described = stats.describe(values)
    assert summary.n == summary.patients == 30
    assert summary.mean == pytest.approx(described.mean)
    assert summary.sd == pytest.approx(math.sqrt(described.variance))
    assert summary.median == pytest.approx(np.median(values))
    assert summary.low < summary.mean < summary.high


def test_single_case_has_no_spread():
    summary = ours.summarise([0.7], ["p"])
    assert (summary.mean, summary.sd, summary.low, summary.high) == (0.7, None, None, None)
    assert ours.mean_interval([0.1, 0.2, 0.3, 0.4], own_patient(range(4))) is None
    with pytest.raises(ValueError, match="0 values"):
        ours.summarise([], [])


def test_interval_of_many_patients_agrees_with_scipy_bootstrap():
    values = np.random.default_rng(1).normal(0.7, 0.1, size=400)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert ours.mean_interval(values, own_patient(values)) == pytest.approx((theirs.low, theirs.high), abs=1e-3)


@pytest.mark.parametrize("patients", [5, 10, 30])
def test_interval_covers_the_truth_as_often_as_it_says(patients, monkeypatch):
    monkeypatch.setattr(ours, "RESAMPLES", 800)
    rng = np.random.default_rng(patients)
    trials = 400
    covered = 0
    for trial in range(trials):
        effects = rng.normal(0, 0.1, patients)  # two scans of each patient, correlated
        values = np.repeat(effects, 2) + rng.normal(0.7, 0.03, 2 * patients)
        low, high = ours.mean_interval(values, np.repeat(np.arange(patients), 2).tolist(), seed=trial)
        covered += low <= 0.7 <= high
    assert 0.915 < covered / trials < 0.99


def test_repeated_scans_do_not_narrow_the_interval():
    values = np.random.default_rng(3).normal(size=12)
    once = ours.mean_interval(values, own_patient(values))
    tripled = ours.mean_interval(np.repeat(values, 3), np.repeat(np.arange(12), 3).tolist())
    assert tripled == pytest.approx(once)


def test_interval_is_of_the_mean_over_cases_not_over_patients():
    values, patients = [1.0] * 9 + [0.0] * 9, ["many"] * 9 + [f"p{i}" for i in range(9)]
    low, high = ours.mean_interval(values, patients)
    assert low <= 0.5 <= high


def test_drawn_permutations_never_give_p_of_zero():
    assert ours.permutation_p([0.1] * 30, own_patient(range(30))) == pytest.approx(1 / (ours.RESAMPLES + 1))


def test_permutation_p_is_exact_for_few_patients():
    differences = np.array([0.1, 0.2, 0.05, 0.3, -0.02])
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert ours.permutation_p(differences, own_patient(differences)) == pytest.approx(theirs.pvalue)
    assert ours.permutation_p([1, 1, 1, 1], own_patient(range(4))) == pytest.approx(2 / 16)
    assert ours.permutation_p([0, 0, 0], own_patient(range(3))) == 1


def test_permutation_p_of_many_patients_agrees_with_scipy():
    differences = np.random.default_rng(4).normal(0.03, 0.1, size=40)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(5)
    )
    assert ours.permutation_p(differences, own_patient(differences)) == pytest.approx(theirs.pvalue, abs=0.01)


def test_permutation_p_is_uniform_when_there_is_no_difference():
    rng = np.random.default_rng(6)
    p = [ours.permutation_p(rng.normal(size=10), own_patient(range(10))) for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_holm_by_hand():
    assert ours.holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert ours.holm([0.6, 0.9]) == [1.0, 1.0]
    assert ours.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
@settings(max_examples=50, deadline=None)
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    adjusted = ours.holm(p_values)
    alpha, rejected = 0.05, set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] * (len(p_values) - rank) > alpha:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(adjusted) if p <= alpha} == rejected


@pytest.mark.parametrize(("n", "alpha"), [(6, 0.05), (20, 0.05), (20, 0.005)])
def test_detectable_difference_is_found_with_the_power_it_names(n, alpha):
    sd = 0.08
    difference = ours.detectable_difference(sd / math.sqrt(n), n - 1, alpha)
    drawn = np.random.default_rng(8).normal(difference, sd, size=(4000, n))
    power = np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < alpha)
    assert power == pytest.approx(0.8, abs=0.025)


def test_nothing_is_detectable_without_degrees_of_freedom():
    assert ours.detectable_difference(0.1, 0) is None
    assert ours.detectable_difference(0.1, math.nan) is None
    assert ours.detectable_difference(0.1, 1, alpha=1e-9) is None


@pytest.mark.parametrize(
    ("p", "smallest", "text"),
    [
        (None, 0.0, "–"),
        (0.0123, 0.0, "0.012"),
        (0.0004, 0.0, "< 0.001"),
        (1.0, 0.0, "1.000"),
        (1 / 10_001, 1 / 10_001, "≤ 0.0001"),
        (9 / 10_001, 9 / 10_001, "≤ 0.0009"),
        (2 / 256, 2 / 256, "≤ 0.008"),
        (2 / 256, 1 / 10_001, "0.008"),
        (0.0625, 0.0625, "≤ 0.063"),
        (1.0, 1.0, "≤ 1.000"),
    ],
)
def test_p_as_it_is_written(p, smallest, text):
    assert ours.p_text(p, smallest) == text


@given(st.floats(1e-6, 1))
@settings(max_examples=200, deadline=None)
def test_a_p_at_its_limit_is_never_written_smaller(p):
    written = float(ours.p_text(p, p).removeprefix("≤ "))
    assert p <= written * (1 + 1e-9) and written <= max(2 * p, p + 0.001)


@pytest.mark.parametrize("patients", [1, 4, 8, 13, 40])
def test_smallest_p_is_that_of_differences_of_one_sign(patients):
    assert ours.permutation_p([0.1] * patients, own_patient(range(patients))) == pytest.approx(
        ours.smallest_p(patients)
    )


def test_runs_are_averaged_before_cases_are_counted():
    means = ours.case_means([("a", 0.2), ("a", 0.4), ("b", None), ("b", 0.5), ("c", None)])
    assert means == pytest.approx({"a": 0.3, "b": 0.5})


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_means_of_real_cases_never_break_the_law(cases):
    sensitivity, precision = np.array(cases).T
    dice = 2 * sensitivity * precision / (sensitivity + precision)
    assert not ours.breaks_dice_law((dice.mean(), sensitivity.mean(), precision.mean()))
    rounded = [round(float(values.mean()), 3) for values in (dice, sensitivity, precision)]
    assert not ours.breaks_dice_law(rounded, rounding=0.0005)


def test_law_by_hand():
    assert ours.breaks_dice_law((0.865, 0.986, 0.983), rounding=0.0005)  # below S + P - 1
    assert ours.breaks_dice_law((0.959, 0.956, 0.951), rounding=0.0005)  # above (S + P) / 2
    assert not ours.breaks_dice_law((0.659, 0.719, 0.597), rounding=0.0005)  # above by no more than rounding
    assert not ours.breaks_dice_law((0.5, None, 0.9))
