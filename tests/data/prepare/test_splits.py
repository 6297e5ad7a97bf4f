"""Splits: every case once, no patient on two sides, whatever the numbers (FAULTS F7)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covidseg.data.prepare.splits import SIDES, Member, check_patients, chooses, make_splits
from covidseg.system.errors import BadInput

DEFAULTS = {"seed": 0, "test_fraction": 0.2, "validation_fraction": 0.1, "folds": 3}


def members(count, scans=1, **common):
    return [Member(f"c{patient}_{scan}", f"p{patient}", **common) for patient in range(count) for scan in range(scans)]


@st.composite
def cohorts(draw):
    """Patients with one to three scans, some of another site, some with lesions."""
    rows = []
    for patient in range(draw(st.integers(6, 25))):
        site, stratum = draw(st.sampled_from(["A", "A", "B"])), draw(st.sampled_from(["", "lesion"]))
        site = "A" if patient < 4 else site
        rows += [Member(f"c{patient}_{k}", f"p{patient}", site, "", stratum) for k in range(draw(st.integers(1, 3)))]
    return rows


@given(cohorts(), st.integers(0, 99), st.floats(0, 0.4), st.floats(0, 0.3), st.sampled_from([0, 2, 3, 5]))
@settings(max_examples=150, deadline=None)
def test_every_case_once_and_no_patient_on_two_sides(rows, seed, test, validation, folds):
    options = {"seed": seed, "test_fraction": test, "validation_fraction": validation, "folds": folds}
    made = make_splits(rows, **options, external_sites=["B"])
    assert made == make_splits(rows[::-1], **options, external_sites=["B"])  # the order of the files does not matter
    patient = {row.id: row.patient for row in rows}
    for sides in (made["fixed"], *made["folds"]):
        assert sorted(case for side in SIDES for case in sides[side]) == sorted(patient)
        groups = [{patient[case] for case in sides[side]} for side in SIDES]
        assert sum(map(len, groups)) == len(set.union(*groups))
        assert set(sides["external"]) == {row.id for row in rows if row.site == "B"}
        assert sides["train"]
    if made["folds"]:
        held_out = "validation" if made["fixed"]["test"] else "test"
        cases = [case for sides in made["folds"] for case in sides[held_out]]
        assert len(cases) == len(set(cases))  # the folds' held-out parts are disjoint and cover the rest
        outside = {*made["fixed"]["test"], *made["fixed"]["external"]}
        assert set(cases) == set(patient) - outside
        if held_out == "validation":
            assert all(sides["test"] == made["fixed"]["test"] for sides in made["folds"])


def test_another_seed_is_another_split():
    rows = members(40)
    assert make_splits(rows, **DEFAULTS) != make_splits(rows, **{**DEFAULTS, "seed": 1})


def test_fractions_are_of_patients():
    sides = make_splits(members(50, scans=2), **DEFAULTS)["fixed"]
    assert [len(sides[side]) for side in SIDES] == [72, 8, 20, 0]  # 50 patients: 10 test, 4 of 40 validation


def test_lesion_free_patients_are_on_every_side():
    rows = members(40, stratum="lesion") + [Member(f"h{k}", f"h{k}") for k in range(10)]
    made = make_splits(rows, seed=3, test_fraction=0.2, validation_fraction=0.25, folds=5)
    for sides in (made["fixed"], *made["folds"]):
        for side in ("train", "validation", "test"):
            share = sum(case.startswith("h") for case in sides[side]) / len(sides[side])
            assert 0.1 <= share <= 0.3


def test_declared_sides_are_kept_and_replace_the_drawn_ones():
    rows = [*members(5), Member("t", "pt", declared="test"), Member("v", "pv", declared="validation")]
    sides = make_splits(rows, **DEFAULTS)["fixed"]
    assert sides["test"] == ["t"] and sides["validation"] == ["v"] and len(sides["train"]) == 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*members(5), Member("x", "p0", declared="test")], "patient p0 is in"),
        ([*members(5), Member("x", "p0", site="B")], "patient p0 is in"),
        ([*members(5), Member("x", "px", declared="tset")], "split 'tset' is none of"),
        ([*members(5), Member("c0_0", "other")], "a case id occurs twice"),
        (members(1), "1 patients cannot give 1 away"),
    ],
)
def test_f7_what_cannot_be_divided_is_refused(rows, message):
    with pytest.raises(BadInput, match=message):
        make_splits(rows, **DEFAULTS, external_sites=["B"])


def test_published_folds_lose_training_cases_of_tested_patients():
    rows = [Member("a1", "a"), Member("a2", "a"), Member("b", "b"), Member("c", "c")]
    made = make_splits(rows, **DEFAULTS, published=[{"train": ["a1", "b"], "test": ["a2", "c"]}])
    assert made["folds"] == [{"train": ["b"], "validation": [], "test": ["a2", "c"], "external": []}]
    assert made["notes"] == ["fold 0: a1 left out of training, the patient is in the test set"]


def test_f7_published_fold_that_names_an_absent_case_is_refused():
    with pytest.raises(BadInput, match="names cases that are not there: z"):
        make_splits(members(4), **DEFAULTS, published=[{"train": ["c0_0", "z"], "test": ["c1_0"]}])


def test_too_few_patients_for_folds_is_a_note():
    made = make_splits(members(4), **{**DEFAULTS, "folds": 5})
    assert made["folds"] == [] and made["notes"] == ["no folds: 3 patients are too few for 5"]


def test_check_patients_names_absent_cases():
    with pytest.raises(BadInput, match="train names z"):
        check_patients({"train": ["z"]}, {"a": "p"}, "mine")


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"evaluate": "best", "score_on": "held_out"}, True),
        ({"evaluate": "last", "score_on": "validation"}, True),
        ({"evaluate": "last", "score_on": "held_out"}, False),
        ({"evaluate": "last"}, False),  # of a run from before there was a choice
    ],
)
def test_what_is_chosen_by_validation_has_cases_kept_for_it(training, expected):
    assert chooses(training) is expected
