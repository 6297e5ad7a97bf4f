import dataclasses

import pytest
import torch

from covidseg.data.store import PreparedDataset
from covidseg.data.train.datamodule import CaseSet, CTDataModule
from covidseg.system.errors import BadInput

TRAINING = {
    "patch_size_zyx": [8, 8, 8], "batch_size": 2, "foreground_probability": 1.0, "max_steps": 5, "loader_threads": 1,
    "prefetch": 1,
}  # fmt: skip


def without(dataset, case, structure):
    """The data set as if `structure` had not been annotated in `case`."""
    left = tuple(name for name in dataset.cases[case].annotated if name != structure)
    changed = dataclasses.replace(dataset.cases[case], annotated=left)
    return dataclasses.replace(dataset, cases={**dataset.cases, case: changed})


@pytest.fixture
def dataset(prepared):
    return PreparedDataset.open(prepared)


def test_sets_are_those_of_the_split_and_patches_are_of_training_cases(dataset):
    data = CTDataModule(dataset, None, ["lesion"], TRAINING, seed=0)
    assert {name: [case.id for case in cases] for name, cases in data.sets.items()} == {
        "validation": ["c4", "c5"], "test": ["c6"], "external": ["c7"],
    }  # fmt: skip
    batches = list(data.train_dataloader())
    assert len(batches) == 5
    assert {case for batch in batches for case in batch["case"]} == {"c0", "c1", "c2", "c3"}
    assert all((mask == 2).any() for batch in batches for mask in batch["mask"])


def test_a_case_is_trained_on_only_if_all_structures_are_annotated(dataset):
    dataset = without(without(dataset, "c1", "lesion"), "c4", "lung")
    lesion = CTDataModule(dataset, 0, ["lesion"], TRAINING, seed=0)
    assert [case.id for case in lesion.train_cases] == ["c0", "c2", "c3"] and lesion.left_out == ["c1"]
    lung = CTDataModule(dataset, 0, ["lung"], TRAINING, seed=0)
    assert len(lung.train_cases) == 4 and [case.id for case in lung.sets["validation"]] == ["c5"]
    joint = CTDataModule(dataset, 0, ["lung", "lesion"], TRAINING, seed=0)
    assert joint.left_out == ["c1"] and [case.id for case in joint.sets["validation"]] == ["c4", "c5"]


def test_nothing_to_train_on_is_refused(dataset):
    for case in ("c0", "c1", "c2", "c3"):
        dataset = without(dataset, case, "lung")
    with pytest.raises(BadInput, match="no training case has lung annotated"):
        CTDataModule(dataset, None, ["lung"], TRAINING, seed=0)


def test_whole_cases_stay_where_they_are(dataset):
    data = CTDataModule(dataset, None, ["lesion"], TRAINING, seed=0)
    (cases,) = data.val_dataloader()
    assert isinstance(cases, CaseSet) and data.transfer_batch_to_device(cases, torch.device("cpu"), 0) is cases
    assert len(CaseSet([])) == 0 and len(data.val_dataloader()) == 1


def test_settings_can_be_chosen_without_a_test_patient(dataset):
    data = CTDataModule(dataset, None, ["lesion"], TRAINING, seed=0, score_on="validation")
    assert data.scored == ("validation",) and data.protocol["sets"] == {"validation": 2}
    assert CTDataModule(dataset, None, ["lesion"], TRAINING, seed=0).scored == ("test", "external")
    nobody = dataclasses.replace(
        dataset, splits={**dataset.splits, "fixed": {**dataset.splits["fixed"], "validation": []}}
    )
    with pytest.raises(BadInput, match=r"score_on=validation: no case of .* is kept for validation"):
        CTDataModule(nobody, None, ["lesion"], TRAINING, seed=0, score_on="validation")
