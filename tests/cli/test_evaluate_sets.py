"""Which scans are scored: sets exist where a data set or the user defined them, and nothing is left out in silence."""

import csv
import json
import shlex
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from covidseg.config.paths import CONF
from covidseg.data.store import MARKER
from covidseg.system.files import read_json, sha256, write_json


@pytest.fixture
def others(tmp_path, write_scan):
    """Four scans with lesion masks, as somebody sends them: no table, no sets."""
    root = tmp_path / "other_scans"
    (root / "lesions").mkdir(parents=True)
    for number in range(4):
        hu, scan = write_scan(root / f"images/s{number}.nii.gz", seed=10 + number)
        lesion = np.zeros(hu.shape, np.uint8)
        lesion[5:10, 20:26, 9:14] = 1
        image = sitk.GetImageFromArray(lesion)
        image.CopyInformation(scan)
        sitk.WriteImage(image, str(root / f"lesions/s{number}.nii.gz"))
    return root


@pytest.fixture
def declare(others):
    """`declare("train", "", "test")`: a cases.csv that names the sides of the first scans."""

    def write(*sides):
        lines = [f"s{number},p{number},A,{side}" for number, side in enumerate(sides)]
        (others / "cases.csv").write_text("\n".join(["case,patient,site,split", *lines]) + "\n")

    return write


@pytest.fixture
def scored(in_process, tmp_path, others):
    """`scored("run=...", ...)` -> ({set: [case, ...]} in the written cases.csv, stdout)."""

    def run(*arguments):
        options = [f"paths.data={tmp_path / 'data'}", f"output={tmp_path / 'out'}", "data=folder", "data.workers=0"]
        status, out, err = in_process("evaluate", f"data.root={others}", *options, *arguments)
        assert status == 0, err
        sets = {}
        with open(tmp_path / "out/cases.csv", newline="") as stream:
            for row in csv.DictReader(stream):
                sets.setdefault(row["set"], []).append(row["case"])
        return sets, out

    return run


@pytest.fixture
def refused(in_process, tmp_path, others):
    def run(*arguments):
        options = [f"paths.data={tmp_path / 'data'}", f"output={tmp_path / 'out'}"]
        status, _, err = in_process(
            "evaluate", f"data.root={others}", "data=folder", "data.workers=0", *options, *arguments
        )
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return run


ALL = {"all": ["s0", "s1", "s2", "s3"]}


def test_the_readme_s_command_scores_every_scan_of_other_data(in_process, make_run, others, tmp_path):
    readme = (CONF.parent / "README.md").read_text()
    command = "python src/evaluate.py run=<run folder> data=folder data.root=other_scans"
    assert command in readme
    arguments = shlex.split(command.replace("<run folder>", str(make_run("lesion"))))[2:]
    status, out, err = in_process("evaluate", *arguments)
    assert status == 0, err
    assert "4 cases, " in out and "set all: these data have no test set of their own, so each case is scored" in out
    (table,) = tmp_path.glob("runs/*/*/*/*/evaluation/*/cases.csv")
    with open(table, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["set"], row["case"]) for row in rows] == [("all", f"s{number}") for number in range(4)]
    assert json.loads((table.parent / "metrics.json").read_text())["sets"]["all"]["lesion"]["n"] == 4


def test_masks_of_others_are_scored_on_every_scan(scored, others, tmp_path):
    assert scored(f"predictions={others / 'lesions'}", "task=lesion")[0] == ALL


def test_a_declared_test_set_is_scored_and_what_is_left_out_is_said(scored, make_run, declare, refused):
    declare("", "train", "test", "test")
    run = f"run={make_run('lesion')}"
    sets, out = scored(run)
    assert sets == {"test": ["s2", "s3"]}
    assert "not scored: 2 in train (sets=all scores them, too)" in out
    assert scored(run, "sets=all")[0] == {"train": ["s0", "s1"], "test": ["s2", "s3"]}
    assert scored(run, "sets=[train,test]")[0] == {"train": ["s0", "s1"], "test": ["s2", "s3"]}
    error = refused(run, "sets=external")
    assert "folder has no case in external, it has 2 in train, 2 in test -> choose others: sets=[train,test]" in error


def test_a_site_of_its_own_is_a_set(scored, make_run, declare, others):
    declare("", "", "", "")
    table = (others / "cases.csv").read_text()
    (others / "cases.csv").write_text(table.replace("p3,A", "p3,B"))
    run = f"run={make_run('lesion')}"
    sets, out = scored(run, "data.splits.external_sites=[B]")
    assert sets == {"external": ["s3"]} and "not scored: 3 in train" in out


def test_without_a_declared_test_set_every_scan_is_scored(scored, make_run, declare):
    """Who was trained on by somebody else does not matter to this run."""
    declare("train", "train", "validation", "validation")
    run = f"run={make_run('lesion')}"
    assert scored(run)[0] == ALL
    assert scored(run, "sets=validation")[0] == {"validation": ["s2", "s3"]}


def test_a_set_asked_for_where_there_is_none(refused, make_run, scored):
    run = f"run={make_run('lesion')}"
    error = refused(run, "sets=test")
    assert "folder has no test set: nobody divided its 4 cases -> leave sets=... out to score all of them" in error
    assert scored(run)[0] == ALL  # the remedy
    assert scored(run, "sets=all")[0] == ALL


def test_what_the_user_draws_is_a_set(scored, make_run, refused):
    run = f"run={make_run('lesion')}"
    sets, out = scored(run, "data.splits.test_fraction=0.5")
    assert [(name, len(cases)) for name, cases in sets.items()] == [("test", 2)]
    assert "not scored: 2 in train" in out
    assert scored(run, "data.splits.seed=3")[0] == ALL
    tested = []
    for fold in range(2):
        sets, _ = scored(run, f"fold={fold}", "data.splits.test_fraction=0", "data.splits.folds=2")
        tested += sets.pop("test")
        assert not sets
    assert sorted(tested) == ALL["all"]
    assert "fold=2: folder has 2 folds" in refused(run, "fold=2", "data.splits.test_fraction=0", "data.splits.folds=2")
    assert "fold=one: is no fold" in refused(run, "fold=one")


def test_a_run_on_its_own_data_keeps_its_fold(in_process, make_run):
    status, _, err = in_process("evaluate", f"run={make_run('lesion')}", "fold=1")
    assert status == 2 and "fold=1: is fixed by the run on its own data -> leave it out" in err


@pytest.fixture
def divided(prepared, tmp_path):
    """`divided(drawn=["test"], fixed={...})` -> a copy of the prepared folder with another splits.json."""

    def copy(**changes):
        folder = tmp_path / prepared.name
        shutil.copytree(prepared, folder)
        write_json(folder / "splits.json", read_json(folder / "splits.json") | changes)
        write_json(folder / MARKER, {name: sha256(folder / name) for name in ("dataset.json", "splits.json")})
        return folder

    return copy


@pytest.mark.parametrize(
    ("written", "left_out"),
    [
        ({}, "7 in train"),  # an older folder does not say: test and validation cases may have been drawn
        ({"drawn": ["test", "validation"]}, "7 in train"),
        ({"drawn": ["validation"]}, "6 in train"),
        ({"drawn": []}, "4 in train, 2 in validation"),
    ],
)
def test_of_a_prepared_folder_only_declared_sets_are_sets(scored, make_run, divided, written, left_out):
    run = f"run={make_run('lesion', **{'data.spacing_zyx': '[6.0,5.0,5.0]'})}"
    sets, out = scored(run, f"data.prepared={divided(**written)}")
    assert sets == {"external": ["c7"]} | ({} if left_out.startswith("7") else {"test": ["c6"]})
    assert f"not scored: {left_out} (sets=all" in out


def test_training_cases_are_called_by_name_where_the_run_s_folder_is_given_as_other_data(
    in_process, make_run, divided, tmp_path
):
    names = [f"c{number}" for number in range(8)]
    fixed = {"train": names[:4], "validation": names[4:6], "test": names[6:], "external": []}
    folder = divided(fixed=fixed, drawn=["validation", "test"])
    run = make_run("lesion", **{"data.spacing_zyx": "[6.0,5.0,5.0]", "data.prepared": folder})
    write_json(run / "manifest.json", {"data": {"name": "small", "hash": "0123456789ab"}})
    options = [f"run={run}", f"output={tmp_path / 'out'}"]
    status, out, err = in_process("evaluate", *options)
    assert (status, err) == (0, "") and "2 cases, " in out and "not scored: 4 in train, 2 in validation" in out
    status, out, err = in_process("evaluate", *options, "data=folder", f"data.prepared={folder}")
    assert status == 0 and "8 cases, " in out
    assert "6 of 8 cases were part of its training (train: c0, c1, c2, c3; validation: c4, c5)" in err


def test_predictions_that_no_chest_holds_are_said(scored, others, tmp_path):
    """Masks of 15 litres: a note for each, five at most, and all in metrics.json."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (others / "lesions").glob("*.nii.gz"):
        scan = sitk.ReadImage(str(path))
        image = sitk.GetImageFromArray(np.ones(scan.GetSize()[::-1], np.uint8))
        image.CopyInformation(scan)
        sitk.WriteImage(image, str(masks / path.name))
    _, out = scored(f"predictions={masks}", "task=lesion")
    assert "note: s0: 15.2 l of lesion are more than a chest holds (12 l)" in out
    flags = json.loads((tmp_path / "out/metrics.json").read_text())["flags"]
    assert [(flag["case"], flag["key"]) for flag in flags] == [(f"s{k}", "lesion_volume") for k in range(4)]
    assert "note: " not in scored(f"predictions={others / 'lesions'}", "task=lesion")[1]
