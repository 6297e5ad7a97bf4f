import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from covidseg.inference.segmenter import load

SPLITS = {"c0": "train", "c1": "train", "c2": "validation", "c3": "test", "c4": "test", "c5": "test"}


@pytest.fixture
def evaluate(in_process, tmp_path):
    """`evaluate("data=folder", run=...)` -> (exit status, stdout, stderr) of the command in `tmp_path`."""

    def run(*arguments, **options):
        options = {"paths.data": tmp_path / "data", **options}
        return in_process("evaluate", *arguments, *(f"{key}={value}" for key, value in options.items()))

    return run


@pytest.fixture
def data(tmp_path, write_scan):
    """Options of a small data set in folders: six cases, c5 of another site, c4 without a lesion."""
    root = tmp_path / "raw"
    for folder in ("lesions", "lungs"):
        (root / folder).mkdir(parents=True)
    for number, case in enumerate(SPLITS):
        hu, scan = write_scan(root / f"images/{case}.nii.gz", seed=number)
        lung = np.zeros(hu.shape, bool)
        lung[3:17, 12:28, 8:18] = lung[3:17, 12:28, 27:36] = True
        lesion = np.zeros(hu.shape, bool)
        lesion[5:10, 20:26, 9 : 13 + number] = case != "c4"
        for folder, mask in (("lesions", lesion), ("lungs", lung)):
            image = sitk.GetImageFromArray(mask.astype(np.uint8))
            image.CopyInformation(scan)
            sitk.WriteImage(image, str(root / folder / f"{case}.nii.gz"))
    lines = [f"{case},p{case},{'B' if case == 'c5' else 'A'},{split}" for case, split in SPLITS.items()]
    (root / "cases.csv").write_text("\n".join(["case,patient,site,split", *lines]) + "\n")
    return {
        "data": "folder",
        "data.root": root,
        "data.may_be_empty": "true",
        "data.splits.external_sites": "[B]",
        "data.workers": 0,
    }


def _rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def masks(tmp_path, data):
    """A folder of predictions: the references of the test sets, under the names of `predict`."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for case in ("c3", "c4", "c5"):
        for name in ("lesion", "lung"):
            image = sitk.ReadImage(str(data["data.root"] / f"{name}s/{case}.nii.gz"))
            sitk.WriteImage(image, str(folder / f"{case}_{name}.nii.gz"))
    return folder


def test_a_run_is_scored_on_its_test_sets(evaluate, make_run, data, tmp_path):
    run = make_run("joint")
    status, out, err = evaluate(run=run, **data)
    assert status == 0, err
    (folder,) = (run / "evaluation").iterdir()
    rows = _rows(folder / "cases.csv")
    assert [(row["set"], row["case"], row["structure"]) for row in rows] == [
        (name, case, structure)
        for name, case in (("test", "c3"), ("test", "c4"), ("external", "c5"))
        for structure in ("lesion", "lung")
    ]
    segmenter = load(run)
    for row in rows:  # against SimpleITK, from the masks that `predict` would write
        labels = sitk.GetArrayFromImage(segmenter.predict(data["data.root"] / f"images/{row['case']}.nii.gz"))
        mask = labels == 2 if row["structure"] == "lesion" else labels > 0
        lesion, lung = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(data["data.root"] / f"{name}/{row['case']}.nii.gz"))) > 0
            for name in ("lesions", "lungs")
        )
        reference = lesion if row["structure"] == "lesion" else lung | lesion
        assert int(row["tp"]) == (mask & reference).sum()
        if mask.any() or reference.any():
            expected = 2 * (mask & reference).sum() / (mask.sum() + reference.sum())
            assert float(row["dice"]) == pytest.approx(expected)
        else:
            assert "both masks empty" in row["undefined"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["sets"]["test"]["lesion"]["n_empty_reference"] == 1
    assert metrics["run"] == "/".join(run.parts[-4:])
    assert metrics["checkpoint_sha256"] == segmenter.checkpoint_sha256
    assert "s per case" in out
    assert "test, lesion: 2 cases, " in out and "1 empty references" in out


def test_a_run_defaults_to_the_data_it_was_trained_on(evaluate, make_run, data):
    options = {key: f"'{value}'" if key == "data.root" else value for key, value in data.items() if key != "data"}
    run = make_run("lesion", data="folder", **options)
    status, _, err = evaluate(run=run, sets="validation")
    assert status == 0, err
    (folder,) = (run / "evaluation").iterdir()
    assert [row["case"] for row in _rows(folder / "cases.csv")] == ["c2"]


def test_a_run_that_was_moved_finds_its_data_by_paths_data(evaluate, make_run, data, tmp_path):
    """The data lay in the run's own paths.data, on a machine with other folders."""
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    data["data.root"] = data["data.root"].rename(there / "raw")
    options = {key: f"'{value}'" if key == "data.root" else value for key, value in data.items() if key != "data"}
    run = make_run("lesion", data="folder", **{**options, "paths.data": there})
    there.rename(here)
    status, _, err = evaluate(run=run, **{"paths.data": "null"})
    assert status == 2 and "there is no such folder" in err
    status, _, err = evaluate(run=run, **{"paths.data": here})
    assert status == 0, err
    assert (here / "prepared").is_dir() and not there.exists()


def test_cases_the_run_was_trained_on_are_called_by_name(evaluate, make_run, data, tmp_path):
    """Other splits and other file names make test cases of training cases; their own split is silent."""
    options = {key: f"'{value}'" if key == "data.root" else value for key, value in data.items() if key != "data"}
    run = make_run("lesion", data="folder", **{**options, "paths.data": tmp_path / "data"})
    status, _, err = evaluate(run=run)
    assert status == 0 and "cannot be told (folder: the data set it was trained on is not here)" in err
    (prepared,) = (tmp_path / "data/prepared").glob("folder-*")
    index = json.loads((prepared / "dataset.json").read_text())
    (run / "manifest.json").write_text(json.dumps({"data": {key: index[key] for key in ("name", "hash")}}))
    status, _, err = evaluate(run=run, sets="all")
    assert (status, err) == (0, "")

    root = data["data.root"]
    for folder in ("images", "lesions", "lungs"):
        (root / folder / "c0.nii.gz").rename(root / folder / "new.nii.gz")
    image = sitk.ReadImage(str(root / "images/c1.nii.gz"))
    (root / "images/c1.nii.gz").unlink()
    sitk.WriteImage(image, str(root / "images/c1.nrrd"))  # another file, the same voxels
    table = (root / "cases.csv").read_text().replace("c0,pc0,A,train", "new,pnew,A,test")
    table = table.replace("c1,pc1,A,train", "c1,pc1,A,test").replace("c4,pc4,A,test", "c4,pc4,A,train")
    (root / "cases.csv").write_text(table.replace("c2,pc2,A,validation", "c2,pc2,A,test"))
    status, _, err = evaluate(run=run, output=tmp_path / "out", **data)
    assert status == 0, err
    assert "3 of 5 cases were part of its training (train: c1, new; validation: c2)" in err and err.count("\n") == 1
    seen = json.loads((tmp_path / "out/metrics.json").read_text())["seen_in_training"]
    assert seen == {"train": ["c1", "new"], "validation": ["c2"]}


def test_perfect_masks_score_one_and_the_healthy_case_is_counted(evaluate, masks, data, tmp_path):
    status, _, err = evaluate(predictions=masks, task="joint", output=tmp_path / "out", **data)
    assert status == 0, err
    rows = _rows(tmp_path / "out/cases.csv")
    assert len(rows) == 6
    for row in rows:
        healthy = (row["case"], row["structure"]) == ("c4", "lesion")
        assert row["dice"] == ("" if healthy else "1.0")
        assert row["nsd"] == ("" if healthy else "1.0")
    sets = json.loads((tmp_path / "out/metrics.json").read_text())["sets"]
    assert (sets["test"]["lesion"]["n"], sets["test"]["lesion"]["dice"]["n"]) == (2, 1)


def test_missing_and_extra_masks_are_errors(evaluate, masks, data, tmp_path):
    """S1-17, J6: scoring only the cases that have a prediction flatters it."""
    options = {"predictions": masks, "task": "lesion", "output": tmp_path / "out", **data}
    assert evaluate(**options)[0] == 0
    mask = masks / "c3_lesion.nii.gz"
    content = mask.read_bytes()
    mask.unlink()
    status, _, err = evaluate(**options)
    assert status == 2 and "1 masks are missing: c3_lesion" in err
    mask.write_bytes(content)
    (masks / "c9_lesion.nii.gz").write_bytes(content)
    status, _, err = evaluate(**options)
    assert status == 2 and "1 masks belong to no case: c9_lesion.nii.gz" in err
    (masks / "c9_lesion.nii.gz").rename(masks / "c3.nii.gz")
    status, _, err = evaluate(**options)
    assert status == 2 and "are both for case c3" in err


def test_masks_are_found_under_the_names_of_the_scans(evaluate, masks, data, tmp_path):
    """`predict` keeps the scan's name, a prepared case has a safe id."""
    root = data["data.root"]
    for folder in ("images", "lesions", "lungs"):
        (root / folder / "c3.nii.gz").rename(root / folder / "my scan 1.nii.gz")
    table = (root / "cases.csv").read_text()
    (root / "cases.csv").write_text(table.replace("c3,pc3", "my scan 1,pc3"))
    for name in ("lesion", "lung"):
        (masks / f"c3_{name}.nii.gz").rename(masks / f"my scan 1_{name}.nii.gz")
    options = {"predictions": masks, "task": "joint", "output": tmp_path / "out", **data}
    status, _, err = evaluate(**options)
    assert status == 0, err
    assert {row["case"] for row in _rows(tmp_path / "out/cases.csv")} == {"my_scan_1-ac6bc1b2", "c4", "c5"}
    shutil.copy(masks / "my scan 1_lesion.nii.gz", masks / "my_scan_1-ac6bc1b2_lesion.nii.gz")
    status, _, err = evaluate(**options)
    assert status == 2 and "are both for case my_scan_1-ac6bc1b2" in err


def test_a_mask_on_another_grid_is_refused(evaluate, masks, data, tmp_path):
    path = masks / "c3_lesion.nii.gz"
    image = sitk.ReadImage(str(path))
    image.SetOrigin((0, 0, 0))
    sitk.WriteImage(image, str(path))
    status, _, err = evaluate(predictions=masks, task="lesion", **data)
    assert status == 2 and "c3_lesion.nii.gz" in err and err.count("\n") == 1


def test_results_never_replace_somebody_elses_files(evaluate, make_run, masks, data, tmp_path):
    """The table of the data set, a run's own scores, a cases.csv of the user: refused; its own results: replaced."""
    run, root, mine = make_run("lesion"), data["data.root"], tmp_path / "mine"
    (run / "metrics.json").write_text("{}")
    mine.mkdir()
    (mine / "cases.csv").write_text("mine")
    options = {"predictions": masks, "task": "lesion", **data}
    kept = {path: path.read_bytes() for path in (root / "cases.csv", run / "metrics.json", mine / "cases.csv")}
    for output, message in (
        (root, "lies in data.root"),
        (root / "results", "lies in data.root"),
        (run, "is a run folder"),
        (mine, "holds a cases.csv that evaluate.py did not write"),
        (mine / "cases.csv", "is a file"),
    ):
        status, _, err = evaluate(output=output, **options)
        assert status == 2 and err.count("\n") == 1 and message in err, err
    for output in (root, run):
        assert evaluate(output=output, overwrite="true", **options)[0] == 2
    assert evaluate(output=mine, overwrite="no", **options)[0] == 2, "a word is not true"
    assert {path: path.read_bytes() for path in kept} == kept
    assert not (root / "results").exists()
    assert evaluate(output=mine, overwrite="true", **options)[0] == 0
    assert evaluate(output=mine, **options)[0] == 0


def test_nothing_to_score_is_an_error(evaluate, make_run, masks, data, tmp_path):
    """A lung run on data without lungs, an empty folder of masks: no empty table with exit status 0."""
    shutil.rmtree(data["data.root"] / "lungs")
    (tmp_path / "empty").mkdir()
    for source in ({"run": make_run("lung")}, {"predictions": tmp_path / "empty", "task": "lung"}):
        status, _, err = evaluate(output=tmp_path / "out", **source, **data)
        assert status == 2 and err.count("\n") == 1, err
        assert "folder: nothing can be scored: no case in test, external has lung annotated" in err
    assert not (tmp_path / "out").exists()


def test_only_what_was_scored_is_counted(evaluate, masks, data, tmp_path):
    (data["data.root"] / "lungs/c5.nii.gz").unlink()
    status, out, err = evaluate(predictions=masks, task="lung", output=tmp_path / "out", **data)
    assert status == 0, err
    assert "2 cases, " in out and "1 more have no lung annotated" in out


def test_mistakes_on_the_command_line_are_one_line(evaluate, make_run, masks, data, tmp_path):
    run = make_run("lesion")
    for options, message in (
        ({}, "give a run or a folder of predictions"),
        ({"run": run, "predictions": masks}, "give a run or a folder of predictions"),
        ({"run": run, "task": "lung", **data}, "task: is fixed by the run"),
        ({"predictions": masks}, "add task=... and data=..."),
        ({"predictions": tmp_path / "nowhere", "task": "lesion", **data}, "is no folder"),
        ({"run": run, "sets": "tset", **data}, "sets=tset"),
    ):
        status, _, err = evaluate(**options)
        assert status == 2, options
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_scoring_needs_no_simpleitk():
    """A node without the raw scans evaluates its runs."""
    code = "import sys, covidseg.evaluation.cases, covidseg.inference.segmenter; assert 'SimpleITK' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_runs_of_several_seeds_are_scored_together(evaluate, make_run, data, tmp_path):
    """The mean of two seeds is one method; of two folds it is none: each has seen the other's test cases."""
    options = {key: f"'{value}'" if key == "data.root" else value for key, value in data.items() if key != "data"}
    runs = [make_run("lesion", seed=seed, data="folder", **options) for seed in range(2)]
    listed = f"[{runs[0]},{runs[1]}]"
    status, _, err = evaluate(run=listed)
    assert (status, err.count("\n")) == (2, 1) and "give output=<folder>" in err
    status, _, err = evaluate(run=listed, output=tmp_path / "mean", sets="test")
    assert status == 0, err
    metrics = json.loads((tmp_path / "mean/metrics.json").read_text())
    assert [metrics["run"], *(one["run"] for one in metrics["averaged_with"])] == [
        "/".join(run.parts[-4:]) for run in runs
    ]
    alone = {row["case"]: row["tp"] for row in _rows(tmp_path / "mean/cases.csv")}
    mean = load(runs)
    assert len(alone) == 2 and len(mean.members) == 2

    other = make_run("lesion", seed=2, data="folder", **{**options, "fold": 1})
    status, _, err = evaluate(run=f"[{runs[0]},{other}]", output=tmp_path / "folds")
    assert (status, err.count("\n")) == (2, 1) and "was not trained on the data and fold of" in err
    status, _, err = evaluate(
        "data=folder",
        run=f"[{runs[0]},{other}]",
        output=tmp_path / "folds",
        **{key: value for key, value in data.items() if key != "data"},
    )
    assert status == 0, err


def test_postprocessing_is_chosen_on_validation_cases_and_used_where_asked(
    evaluate, make_run, data, tmp_path, in_process
):
    """The remedy of the message works, the scores of the test set change by it alone, and predict takes it, too."""
    options = {key: f"'{value}'" if key == "data.root" else value for key, value in data.items() if key != "data"}
    run = make_run("lesion", data="folder", **options)
    status, _, err = evaluate(run=run, **{"inference.postprocess": "true"})
    assert status == 2 and "choose_postprocessing=true" in err
    status, out, err = evaluate(run=run, choose_postprocessing="true")
    assert status == 0, err
    chosen = json.loads((run / "postprocessing.json").read_text())
    assert chosen["cases"] == ["c2"] and chosen["dice"]["after"] >= chosen["dice"]["before"]
    assert "mean Dice of 1 validation cases" in out and "used by inference.postprocess=true" in out
    chosen |= {"threshold": 0.7, "smallest_ml": 0.0}  # so that it makes a difference
    (run / "postprocessing.json").write_text(json.dumps(chosen))
    plain, used = load(run), load(run, postprocess=True)
    status, _, err = evaluate(run=run, output=tmp_path / "with", **{"inference.postprocess": "true"})
    assert status == 0, err
    metrics = json.loads((tmp_path / "with/metrics.json").read_text())
    assert metrics["inference"]["postprocessing"] == {"threshold": 0.7, "smallest_ml": 0.0}
    rows = {row["case"]: int(row["tp"]) + int(row["fp"]) for row in _rows(tmp_path / "with/cases.csv")}
    scan = str(data["data.root"] / "images/c3.nii.gz")
    masks = {name: sitk.GetArrayFromImage(one.predict(scan)) for name, one in (("plain", plain), ("used", used))}
    assert rows["c3"] == masks["used"].sum() != masks["plain"].sum()
    arguments = (
        f"run={run}",
        f"input={scan}",
        f"output={tmp_path}/masks",
        "extension=.mha",
        "inference.postprocess=true",
    )
    assert in_process("predict", *arguments)[0] == 0
    assert sitk.GetArrayFromImage(sitk.ReadImage(f"{tmp_path}/masks/c3_lesion.mha")).sum() == rows["c3"]
    status, _, err = evaluate("data=folder", run=run, choose_postprocessing="true")
    assert (status, err.count("\n")) == (2, 1) and "no data=..." in err
