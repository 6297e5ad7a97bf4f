"""Each data set with a configuration of its own, in the layout in which it is published: checked, trained on."""

import csv

import pytest

from covidseg.config.paths import CONF
from covidseg.system.files import read_json
from reading import ONE_RUN

# Where the reader has it, how many cases have masks, and of what.
PUBLIC = {
    "covid19_ct_seg": ("COVID-19-CT-Seg", 20, {"lung", "lesion"}),
    "mosmed": ("MosMedData", 8, {"lesion"}),
    "covid19_20": ("COVID-19-20", 8, {"lesion"}),
    "nnunet": ("Dataset001_Chest", 10, {"lung", "lesion"}),
    "folder": ("my_scans", 10, {"lung", "lesion"}),
}


def options(name):
    return [f"data={name}", f"data.root={PUBLIC[name][0]}", "data.workers=0"]


def test_each_data_set_has_a_stand_in():
    assert set(PUBLIC) | {"phantom"} == {path.stem for path in (CONF / "data").glob("*.yaml")}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_case_is_accepted(command, name):
    status, out, err = command("prepare", *options(name), "check_only=true")
    assert status == 0, err
    assert f"\n{PUBLIC[name][1]} cases" in out and "REFUSED" not in out


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_trained_on_it_is_scored_on_it(command, tmp_path, name):
    fold = ["fold=0"] if name == "covid19_ct_seg" else []
    structures = PUBLIC[name][2]
    task = "joint" if len(structures) == 2 else "lesion"
    status, _, err = command("train", *options(name), *ONE_RUN, "name=t", *fold, f"task={task}")
    assert status == 0, err
    (file,) = tmp_path.glob("runs/t/*/*/*/metrics.json")
    scores = read_json(file)["sets"]["test"]
    assert set(scores) == structures and all(part["dice"]["n"] >= 1 for part in scores.values())


@pytest.mark.slow
def test_another_public_data_set_is_an_external_test_set(command, tmp_path):
    """As docs and conf/data/mosmed.yaml say of MosMedData: every one of its annotated scans is scored."""
    assert command("train", *options("covid19_ct_seg"), *ONE_RUN, "name=t", "fold=0")[0] == 0
    (run,) = tmp_path.glob("runs/t/*/lesion/seed0-fold0")
    status, _, err = command("evaluate", f"run={run}", *options("mosmed"), "output=scores")
    assert status == 0, err
    with open(tmp_path / "scores" / "cases.csv", newline="") as stream:
        assert len({row["case"] for row in csv.DictReader(stream)}) == PUBLIC["mosmed"][1]
