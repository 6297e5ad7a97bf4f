"""How data sets without a test set are divided: what is drawn, what is published, what is kept to choose by."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covidseg.data.datasets import Mask, Source
from covidseg.data.prepare.splits import Member, make_splits
from covidseg.data.protocol import Division
from covidseg.data.store import PreparedDataset
from covidseg.system.errors import BadInput

DEFAULTS = {"seed": 0, "test_fraction": 0.0, "validation_fraction": 0.1, "folds": 5}


@st.composite
def published(draw):
    """Patients with one to three scans, and folds of their cases that may leave cases out and tear patients apart."""
    rows = []
    for patient in range(draw(st.integers(2, 12))):
        stratum = draw(st.sampled_from(["", "lesion"]))
        for scan in range(draw(st.integers(1, 3))):
            rows.append(Member(f"c{patient}_{scan}", f"p{patient}", stratum=stratum))
    folds = []
    for _ in range(draw(st.integers(1, 4))):
        side = {row.id: draw(st.sampled_from(["train", "train", "test", ""])) for row in rows}
        folds.append({name: [case for case in side if side[case] == name] for name in ("train", "test")})
    return rows, folds


@given(published(), st.integers(0, 99), st.floats(0, 0.5))
def test_published_folds_are_tested_as_published_and_keep_whole_patients_to_choose_by(made, seed, share):
    rows, folds = made
    options = {**DEFAULTS, "seed": seed, "validation_fraction": share, "published": folds}
    splits = make_splits(rows, **options)
    assert splits == make_splits(rows[::-1], **options)
    patient = {row.id: row.patient for row in rows}
    for fold, sides, choosing in zip(folds, splits["folds"], splits["choosing"], strict=True):
        tested = {patient[case] for case in fold["test"]}
        assert sides["test"] == sorted(fold["test"])
        assert sides["train"] == sorted(case for case in fold["train"] if patient[case] not in tested)
        assert sides["validation"] == sides["external"] == []
        trained, chosen = ({patient[case] for case in cases} for cases in (sides["train"], choosing))
        assert set(choosing) == {case for case in sides["train"] if patient[case] in chosen}  # whole patients
        assert chosen < trained if len(trained) > 1 else not chosen
        assert bool(chosen) == (len(trained) > 1)


def test_another_seed_keeps_other_patients_to_choose_by():
    rows = [Member(f"c{k}", f"p{k}") for k in range(30)]
    folds = [{"train": [row.id for row in rows[:25]], "test": [row.id for row in rows[25:]]}]
    chosen = [make_splits(rows, **{**DEFAULTS, "seed": seed, "published": folds})["choosing"] for seed in (0, 1)]
    assert chosen[0] != chosen[1] and len(chosen[0][0]) == 2


def test_the_cases_to_choose_by_are_of_both_kinds():
    rows = [Member(f"c{k}", f"p{k}", stratum="lesion" if k % 2 else "") for k in range(20)]
    folds = [{"train": [row.id for row in rows], "test": []}]
    (chosen,) = make_splits(rows, **{**DEFAULTS, "validation_fraction": 0.2, "published": folds})["choosing"]
    assert sorted(int(case[1:]) % 2 for case in chosen) == [0, 0, 1, 1]


def test_who_names_training_and_validation_cases_is_given_no_test_set():
    sides = {"t": "train", "u": "train", "v": "validation", "w": "", "x": ""}
    rows = [Member(case, case, declared=side) for case, side in sides.items()]
    made = make_splits(rows, **{**DEFAULTS, "test_fraction": 0.3})
    assert made["fixed"] == {"train": ["t", "u", "w", "x"], "validation": ["v"], "test": [], "external": []}
    assert made["drawn"] == []


def test_who_names_validation_cases_only_leaves_the_rest_to_be_drawn_from():
    rows = [*(Member(f"c{k}", f"p{k}") for k in range(6)), Member("v", "v", declared="validation")]
    made = make_splits(rows, **{**DEFAULTS, "test_fraction": 0.3})
    assert made["fixed"]["validation"] == ["v"] and len(made["fixed"]["test"]) == 2 and made["drawn"] == ["test"]


def test_what_is_drawn_is_named():
    rows = [Member(f"c{k}", f"p{k}") for k in range(10)]
    assert make_splits(rows, **{**DEFAULTS, "test_fraction": 0.2})["drawn"] == ["test", "validation"]
    declared = [*rows, Member("t", "t", declared="test")]
    assert make_splits(declared, **{**DEFAULTS, "test_fraction": 0.2})["drawn"] == ["validation"]


def test_two_patients_can_be_cross_validated():
    made = make_splits([Member("a", "a"), Member("b", "b")], **{**DEFAULTS, "folds": 2})
    assert sorted(case for sides in made["folds"] for case in sides["test"]) == ["a", "b"]
    assert all(sides["train"] and not sides["validation"] for sides in made["folds"])


def test_cases_that_all_have_a_side_give_no_fold():
    rows = [Member("a", "a", declared="train"), Member("b", "b", declared="train")]
    made = make_splits(rows, **DEFAULTS)
    assert made["folds"] == [] and "no folds: 0 patients are too few for 5" in made["notes"]


def division(annotated, certain=True, drawable=None, **splits):
    sides = {"train": [], "validation": [], "test": [], "external": []}
    fixed = {**sides, **splits.pop("fixed")}
    folds = [{**sides, **fold} for fold in splits.pop("folds", ())]
    return Division("d", {"fixed": fixed, "folds": folds, "drawn": [], **splits}, annotated, drawable, certain)


BOTH, LESION = ("lung", "lesion"), ("lesion",)


@pytest.mark.parametrize(
    ("fixed", "drawn", "structures", "scored"),
    [
        ({"train": "a", "validation": "b", "test": "c", "external": "d"}, [], ["lesion"], ("test", "external")),
        ({"train": "a", "validation": "b", "test": "c", "external": "d"}, [], ["lung"], ("test",)),
        ({"train": "a", "validation": "b", "test": "d"}, [], ["lung"], ("validation",)),
        ({"train": "a", "validation": "b"}, ["validation"], ["lung"], ()),
        ({"train": "a", "validation": "d"}, [], ["lung"], ()),
        ({"train": "ac", "external": "d"}, [], ["lung", "lesion"], ("external",)),
    ],
)
def test_a_set_counts_if_somebody_meant_it_and_something_is_annotated_there(fixed, drawn, structures, scored):
    made = division(
        {"a": BOTH, "b": BOTH, "c": BOTH, "d": LESION},
        fixed={side: list(cases) for side, cases in fixed.items()},
        drawn=drawn,
    )
    assert made.scored(None, structures) == scored
    assert made.scored("all", structures) == ()
    if scored:
        made.require(None, structures)
    else:
        with pytest.raises(BadInput, match="so a run could not be scored"):
            made.require(None, structures)


def test_only_folds_that_can_be_trained_and_scored_are_named():
    folds = [
        {"train": ["a", "b"], "test": ["d"]},
        {"train": ["a", "d"], "test": ["b"]},
        {"train": ["d"], "test": ["a", "b"]},
    ]
    made = division({"a": BOTH, "b": BOTH, "d": LESION}, fixed={"train": ["a", "b", "d"]}, folds=folds)
    assert made.folds(["lesion"]) == [0, 1, 2] and made.folds(["lung"]) == [1]
    with pytest.raises(
        BadInput, match=r"d, fold=0: has no lung annotated .* -> cross-validate with fold=1, or train on"
    ):
        made.require(0, ["lung"])
    with pytest.raises(BadInput, match=r"fold=3: d has 3 folds, counted from 0 -> .*fold=0 \.\.\. fold=2"):
        made.require(3, ["lesion"])
    with pytest.raises(BadInput, match="no case has lung and tumour annotated -> task="):
        made.require("all", ["lung", "tumour"])


def test_what_file_names_cannot_tell_is_left_to_the_voxels(tmp_path):
    """A drawn test set may or may not be one of the cases with lungs."""
    lungs = Mask(tmp_path, {1: 1})
    cases = [Source(f"c{k}", tmp_path, (Mask(tmp_path, {1: 2}), *([lungs] if k == 0 else []))) for k in range(8)]
    splits = make_splits([Member(case.id, case.id) for case in cases], **{**DEFAULTS, "test_fraction": 0.2})
    made = Division.of_sources("d", cases, {**splits, "published": None})
    made.require(None, ["lung"])
    assert made.folds(["lung"]) == [0, 1, 2, 3, 4]


def test_a_prepared_folder_of_before_still_opens(prepared):
    """Its splits.json says neither what was drawn nor what to choose by."""
    dataset = PreparedDataset.open(prepared)
    assert not {"drawn", "choosing"} & dataset.splits.keys()
    assert dataset.split(0, choosing=True) == dataset.split(0)
    assert dataset.split("all").train == sorted(dataset.cases)
    without = {**dataset.splits, "fixed": {"train": ["c0"], "validation": ["c1"], "test": [], "external": []}}
    Division.of_prepared(dataclasses.replace(dataset, splits=without)).require(None, ["lesion"])
