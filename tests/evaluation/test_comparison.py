"""Seeds as a random factor, against formulas by hand, scipy, and simulation."""

import numpy as np
import pytest
from scipy import stats

from covidseg.benchmark.statistics import coverage, rejected
from covidseg.config.paths import ROOT
from covidseg.evaluation import comparison as ours
from covidseg.evaluation.comparison import OF_METHODS, OF_NETWORKS, RowScores, compare, compare_all, difference_error
from covidseg.evaluation.statistics import COVERAGE, permutation_p
from covidseg.system.files import read_json


def row(*seeds, learned=True):
    """One list of scores for each seed."""
    return RowScores({seed: {f"c{i}": value for i, value in enumerate(own)} for seed, own in enumerate(seeds)}, learned)


def own_patients(count):
    return {f"c{i}": f"c{i}" for i in range(count)}


def draw(seed, patients=12, seeds=3, gain=0.0, seed_sd=0.0):
    random = np.random.default_rng(seed)
    table = 0.7 + gain + random.normal(0, 0.1, (1, patients)) + random.normal(0, 0.03, (seeds, patients))
    return table + random.normal(0, seed_sd, (seeds, 1))


def test_one_seed_is_a_paired_t_test_by_scipy():
    first, second = draw(0, seeds=1), draw(1, seeds=1)
    error = difference_error(first, second)
    theirs = stats.ttest_rel(first[0], second[0])
    difference = float(first.mean() - second.mean())
    assert error.df == pytest.approx(11)
    assert error.p(difference) == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval()
    assert error.interval(difference) == pytest.approx((interval.low, interval.high))


def test_where_seeds_are_all_that_varies_it_is_welchs_t_test_of_their_means_with_fewer_df():
    first, second = (
        np.repeat(draw(seed, seeds=4, seed_sd=0.1).mean(axis=1, keepdims=True), 9, axis=1) for seed in (0, 1)
    )
    error = difference_error(first, second)
    theirs = stats.ttest_ind(first[:, 0], second[:, 0], equal_var=False)
    assert (first.mean() - second.mean()) / error.standard_error == pytest.approx(theirs.statistic)
    assert error.df == pytest.approx(theirs.df / (1 + 1 / (2 * 3)))


def test_standard_error_is_that_of_the_mixed_models_mean_squares():
    """By the sums of squares of a two-way table with seeds nested in rows, each written out."""
    seeds, n = 3, 10
    tables = [draw(2, n, seeds, seed_sd=0.02), draw(3, n, seeds, seed_sd=0.02)]
    of_seeds = of_rest = 0.0
    for table in tables:
        for s in range(seeds):
            of_seeds += n * (table[s].mean() - table.mean()) ** 2
            for p in range(n):
                of_rest += (table[s, p] - table[s].mean() - table[:, p].mean() + table.mean()) ** 2
    seed_square, rest_square = of_seeds / (2 * (seeds - 1)), of_rest / (2 * (seeds - 1) * (n - 1))
    differences = tables[0].mean(axis=0) - tables[1].mean(axis=0)
    patient_square = seeds * differences.var(ddof=1) / 2  # of row x patient
    assert patient_square > rest_square
    variance = 2 / (seeds * n) * (seed_square + patient_square - rest_square)
    assert difference_error(*tables).standard_error == pytest.approx(np.sqrt(variance))


def test_the_standard_error_is_what_repeated_experiments_vary_by():
    random = np.random.default_rng(4)
    found, errors = [], []
    for _ in range(2000):
        tables = [
            random.normal(0, 0.06, (1, 20)) + random.normal(0, 0.02, (3, 1)) + random.normal(0, 0.04, (3, 20))
            for _ in range(2)
        ]
        found.append(tables[0].mean() - tables[1].mean())
        errors.append(difference_error(*tables).standard_error ** 2)
    assert np.mean(errors) == pytest.approx(np.var(found), rel=0.08)


def test_rows_are_compared_as_networks_with_one_seed_and_as_methods_with_several():
    patient_of = own_patients(12)
    one, three = row(*draw(0, seeds=1)), row(*draw(1, seeds=3))
    as_networks = compare("a", "b", one, three, patient_of)
    assert as_networks.of == OF_NETWORKS and as_networks.seeds == (1, 3)
    differences = np.array(draw(0, seeds=1)).mean(axis=0) - draw(1, seeds=3).mean(axis=0)
    assert as_networks.p == pytest.approx(permutation_p(differences, list(patient_of)))
    assert as_networks.smallest_p == 2 / 2**12
    as_methods = compare("a", "b", row(*draw(0)), three, patient_of)
    assert as_methods.of == OF_METHODS and as_methods.smallest_p == 0
    assert as_methods.low < as_methods.difference < as_methods.high


def test_what_is_not_learned_has_no_seeds_to_vary():
    patient_of = own_patients(12)
    threshold, network = row(*draw(0, seeds=1), learned=False), row(*draw(1, seeds=3))
    found = compare("net", "threshold", network, threshold, patient_of)
    assert found.of == OF_METHODS and found.seeds == (3, 1)
    alone = compare("net", "threshold", row(*draw(1, seeds=1)), threshold, patient_of)
    assert alone.of == OF_NETWORKS


def test_only_cases_that_every_run_scored_are_compared():
    patient_of = own_patients(8)
    first, second = draw(0, 8, 2), draw(1, 8, 2)
    mine = row(*first)
    holes = RowScores(
        {seed: {k: v for k, v in own.items() if k != f"c{seed}"} for seed, own in row(*second).by_seed.items()}
    )
    found = compare("a", "b", mine, holes, patient_of)
    assert found.n == 6
    assert found.difference == pytest.approx(first[:, 2:].mean() - second[:, 2:].mean())
    assert compare("a", "b", row([0.5]), RowScores({0: {"other": 0.5}}), {"c0": 0, "other": 1}) is None


def test_scans_of_one_patient_are_one_patient():
    patient_of = {f"c{i}": i // 2 for i in range(24)}
    once = compare("a", "b", row(*draw(0)), row(*draw(1)), own_patients(12))
    twice = [row(*np.repeat(draw(seed), 2, axis=1)) for seed in (0, 1)]
    doubled = compare("a", "b", *twice, patient_of)
    assert (doubled.n, doubled.patients) == (24, 12)
    assert (doubled.p, doubled.low, doubled.high) == pytest.approx((once.p, once.low, once.high))


def test_few_patients_with_several_seeds_are_not_tested():
    found = compare("a", "b", row(*draw(0, 4)), row(*draw(1, 4)), own_patients(4))
    assert (found.p, found.low, found.detectable) == (None, None, None)
    assert not found.can_be_significant


def test_identical_rows_do_not_differ():
    found = compare("a", "b", row(*draw(0)), row(*draw(0)), own_patients(12))
    assert found.difference == 0 and found.p == pytest.approx(1)


def test_direction_of_a_metric_decides_who_is_better():
    scores, base = row([1.0, 2.0, 3.0]), row([2.0, 3.0, 3.0])
    better = compare("a", "b", scores, base, own_patients(3), "hd95_mm", higher_is_better=False)
    assert better.superiority == pytest.approx(2.5 / 3)
    assert compare("a", "b", scores, base, own_patients(3)).superiority == pytest.approx(0.5 / 3)


def test_correction_is_over_all_that_is_shown_and_detectable_belongs_to_it():
    patient_of = own_patients(20)
    rows = {
        name: row(*draw(seed, 20, gain=gain)) for seed, (name, gain) in enumerate((("a", 0), ("b", 0.1), ("c", 0.02)))
    }
    alone = compare_all({"dice": rows}, [("b", "a")], patient_of)
    family = compare_all({"dice": rows, "nsd": rows}, [("b", "a"), ("c", "a"), ("c", "b")], patient_of)
    assert [one.family for one in family] == [6] * 6
    assert family[0].p == alone[0].p and family[0].p_holm > alone[0].p_holm
    assert family[0].detectable > alone[0].detectable
    assert compare_all({"dice": rows}, [("b", "missing")], patient_of) == []


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_difference_beyond_the_detectable_is_insignificant(seeds):
    """What the figure shades grey and what the table calls significant belong to one test."""
    patient_of = own_patients(20)
    for trial in range(40):
        gain = 0.02 * (trial % 10)
        rows = {"a": row(*draw(2 * trial, 20, seeds)), "b": row(*draw(2 * trial + 1, 20, seeds, gain))}
        rows["c"] = row(*draw(1000 + trial, 20, seeds))
        for one in compare_all({"dice": rows}, [("b", "a"), ("c", "a")], patient_of):
            if one.detectable is not None and abs(one.difference) > one.detectable:
                assert one.p_holm <= 0.05


def test_it_is_said_when_nothing_can_be_significant():
    rows = {name: row(*draw(seed, 8, 1)) for seed, name in enumerate("abcdefghij")}
    compared = compare_all({"dice": rows}, [(name, "a") for name in "bcdefghij"], own_patients(8))
    assert 2 / 2**8 * 9 > 0.05
    assert not any(one.can_be_significant for one in compared)
    assert {one.detectable for one in compared} == {None}
    (single,) = compare_all({"dice": rows}, [("b", "a")], own_patients(8))
    assert single.can_be_significant and single.detectable


def test_p_texts_tell_a_limit_from_a_value():
    patient_of = own_patients(20)
    rows = {"a": row(*draw(0, 20, 1)), "b": row(*draw(0, 20, 1) + 0.2), "c": row(*draw(1, 20, 1))}
    far, near = compare_all({"dice": rows}, [("b", "a"), ("c", "a")], patient_of)
    assert far.p_text == "≤ 0.0001" and far.p_holm_text == "≤ 0.0002"
    assert "≤" not in near.p_text + near.p_holm_text


@pytest.mark.parametrize(("patients", "seed_sd"), [(8, 0.0), (8, 0.02), (20, 0.01), (130, 0.02)])
def test_equal_methods_are_rarely_called_different(patients, seed_sd):
    assert rejected(400, patients, seed_sd, 3, 0.0) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_a_test_of_one_seed_takes_seeds_for_methods_and_says_so():
    assert rejected(200, 130, 0.02, 1, 0.0) > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, (2, 5), (3, 5)])
@pytest.mark.parametrize("patients", [8, 20, 130])
@pytest.mark.parametrize("seed_sd", [0.0, 0.005, 0.01, 0.02])
def test_type_one_error_is_at_most_six_percent(patients, seed_sd, seeds):
    assert rejected(6000, patients, seed_sd, seeds, 0.0, draw_seed=1) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_type_one_error_where_only_one_row_varies(seeds):
    assert rejected(6000, 20, (0.0, 0.02), seeds, 0.0) <= 0.06


def test_what_the_report_says_of_few_patients_is_what_was_simulated():
    committed = read_json(ROOT / "experiments" / "statistics" / "statistics.json")
    assert {n: round(committed["coverage"][str(n)], 2) for n in COVERAGE} == COVERAGE
    several = [line["type_one"] for line in committed["comparisons"] if line["seeds"] > 1]
    single = [line["type_one"] for line in committed["comparisons"] if line["seeds"] == 1]
    assert committed["trials"] >= 10_000 and max(several) <= 0.06 and round(max(single), 2) == 0.58  # docs/reference.md


@pytest.mark.slow
@pytest.mark.parametrize("patients", COVERAGE)
def test_coverage_below_twenty_patients_is_as_it_is_told(patients):
    assert coverage(4000, patients) == pytest.approx(COVERAGE[patients], abs=0.02)


def test_the_matrix_is_of_the_cases_asked_for():
    scores = row([0.1, 0.2], [0.3, 0.4])
    assert scores.matrix(["c1"]).tolist() == [[0.2], [0.4]]
    assert ours.RowScores({0: {"a": 1.0}, 1: {"b": 1.0}}).complete() == set()
