import base64
import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from covidseg.config.paths import ROOT
from covidseg.inference.batch import LOCK, Predictor
from covidseg.inference.quantify import NOTICE
from covidseg.inference.segmenter import load
from covidseg.inference.window import NonFiniteLogits
from covidseg.scans.read import find_scans, read_scan
from covidseg.system.errors import BadInput
from covidseg.system.files import read_json, sha256


@pytest.fixture
def predict(in_process):
    """`predict(run=..., input=..., output=...)` -> (exit status, stdout, stderr) of the command in `tmp_path`."""
    return lambda **options: in_process("predict", *(f"{key}={value}" for key, value in options.items()))


@pytest.fixture
def run(make_run):
    """A lesion run whose untrained network finds something, but not everything."""
    return _biased(make_run("lesion"))


def _biased(folder):
    """Set the head's bias to half of the foreground's median lead, so that masks are neither empty nor full."""
    import torch

    from covidseg.runs.checkpoints import AtomicCheckpointIO, load_checkpoint

    path = folder / "checkpoints/last.ckpt"
    state = load_checkpoint(path)["state_dict"]
    network = load(folder).network
    lead = network(torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)))
    lead = (lead[:, 1] - lead[:, 0]).median()
    bias = [name for name in state if name.endswith(".bias") and state[name].shape == (2,)][-1]
    state[bias][1] -= lead
    AtomicCheckpointIO().save_checkpoint({"state_dict": state}, path)
    return folder


def _labels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture
def make_dicom():
    """`make_dicom(folder, uids)`: a chest in a folder, once in thick slices and once in thin ones."""
    from volumes import Make, small_chest

    def make(folder, uids, thicknesses=(8.0, 4.0)):
        folder.mkdir(parents=True)
        hu, _ = small_chest(0)
        for uid, thickness in zip(uids, thicknesses, strict=True):
            grid = Make.geometry(hu.shape, spacing_xyz=(9.0, 9.0, thickness))
            Make.dicom(folder, hu, grid, uid=uid, name=f"S{uid[-1]}_{{:04d}}.dcm")

    return make


def _rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_scan_gets_a_mask_and_figures(predict, run, write_scan, tmp_path):
    hu, scan = write_scan(tmp_path / "in/scan 1.nii.gz")
    before = sha256(tmp_path / "in/scan 1.nii.gz")
    status, out, err = predict(run=run, input=f"'{tmp_path}/in/scan 1.nii.gz'", output=tmp_path / "out")
    assert status == 0, err
    mask = sitk.ReadImage(str(tmp_path / "out/scan 1_lesion.nii.gz"))
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert (mask.GetSize(), mask.GetSpacing()) == (scan.GetSize(), pytest.approx(scan.GetSpacing()))
    np.testing.assert_allclose(mask.GetDirection(), scan.GetDirection(), atol=1e-6)
    labels = sitk.GetArrayFromImage(mask)
    assert set(np.unique(labels)) == {0, 1}
    np.testing.assert_array_equal(labels, sitk.GetArrayFromImage(load(run).predict(tmp_path / "in/scan 1.nii.gz")))

    page = json.loads((tmp_path / "out/scan 1_quantities.json").read_text())
    ml = np.prod(scan.GetSpacing()) / 1000
    assert page["figures"]["lesion_ml"] == pytest.approx(labels.sum() * ml, rel=1e-4)
    assert page["figures"]["consolidation_ml"] == pytest.approx(((labels == 1) & (hu >= -300)).sum() * ml, rel=1e-4)
    assert page["figures"]["undefined"]["infection_share"] == "no lung mask"
    assert page["notice"] == NOTICE and NOTICE in out
    assert _rows(tmp_path / "out/quantities.csv")[0]["notice"] == NOTICE
    assert "s per scan on cpu" in out
    assert sha256(tmp_path / "in/scan 1.nii.gz") == before
    assert str(tmp_path) not in json.dumps(page) + (tmp_path / "out/predictions.json").read_text()


def test_two_runs_make_lung_and_lesion_at_once(predict, run, make_run, write_scan, tmp_path):
    write_scan(tmp_path / "scan.nii.gz")
    lung_run = _biased(make_run("lung"))
    options = {"input": tmp_path / "scan.nii.gz", "output": tmp_path / "out", "extension": ".mha"}
    status, out, err = predict(run=f"[{lung_run},{run}]", **options)
    assert status == 0, err
    files = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != LOCK)
    assert files == [
        *("predictions.json", "quantities.csv", "scan_lesion.mha", "scan_lung.mha", "scan_quantities.json"),
    ]
    figures = read_json(tmp_path / "out/scan_quantities.json")["figures"]
    lung, lesion = (_labels(tmp_path / f"out/scan_{name}.mha") for name in ("lung", "lesion"))
    assert figures["infection_share"] == pytest.approx((lung & lesion).sum() / (lung | lesion).sum(), abs=1e-4)
    assert "infection share" in out


def test_joint_run_makes_both_masks(make_run, write_scan, tmp_path):
    write_scan(tmp_path / "scan.nii.gz")
    predictor = Predictor([load(make_run("joint"))], tmp_path / "out", ".nii.gz", -300)
    predictor.run(find_scans(tmp_path / "scan.nii.gz")[0])
    lung, lesion = (_labels(tmp_path / f"out/scan_{name}.nii.gz") for name in ("lung", "lesion"))
    assert not (lesion & ~lung).any(), "the joint lung holds its lesions"


def test_two_runs_of_one_structure_are_averaged_and_two_tasks_with_one_structure_refused(
    predict, run, make_run, write_scan, tmp_path
):
    """Seeds or folds: the mask is that of their mean probabilities, and the page names all weights."""
    write_scan(tmp_path / "scan.nii.gz")
    other = make_run("lesion", seed=1)
    options = {"input": tmp_path / "scan.nii.gz", "output": tmp_path / "out", "extension": ".mha"}
    status, out, err = predict(run=f"[{run},{other}]", **options)
    assert status == 0, err
    assert "lesion: the mean of 2 runs: " in out
    segmenters = [load(run), load(other)]
    scan = read_scan(tmp_path / "scan.nii.gz")
    grid, _ = segmenters[0].grid_of(scan)
    mean = sum(one.scores(grid.image(scan.voxels)).softmax(0) for one in segmenters) / 2
    assert np.array_equal(_labels(tmp_path / "out/scan_lesion.mha"), grid.scores_to_native(mean.log()))
    (named,) = read_json(tmp_path / "out/scan_quantities.json")["runs"]
    hashes = [named["checkpoint_sha256"], *(one["checkpoint_sha256"] for one in named["averaged_with"])]
    assert hashes == [one.checkpoint_sha256 for one in segmenters]

    status, _, err = predict(run=f"[{run},{make_run('joint')}]", **options)
    assert (status, err.count("\n")) == (2, 1)
    assert "two of the runs segment the lesion" in err
    status, _, err = predict(run=f"[{run},{run}]", **options)
    assert (status, err.count("\n")) == (2, 1) and "give each run once" in err
    coarse = make_run("lesion", seed=2, **{"data.spacing_zyx": "[9,8,8]"})
    status, _, err = predict(run=f"[{run},{coarse}]", **options)
    assert (status, err.count("\n")) == (2, 1) and "give runs of one data.spacing_zyx" in err


def test_a_refused_scan_does_not_stop_the_others(predict, run, write_scan, tmp_path):
    """Of three scans one is truncated: two masks, one line in failures.csv, exit status 2; then it is mended."""
    for name in ("a", "b", "c"):
        write_scan(tmp_path / f"in/{name}.nii.gz", seed=ord(name))
    broken = tmp_path / "in/b.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    options = {"run": run, "input": tmp_path / "in", "output": tmp_path / "out"}
    status, out, err = predict(**options)
    assert status == 2
    assert "1 of 3 scans were refused" in err and err.count("\n") == 1
    assert [row["case"] for row in _rows(tmp_path / "out/failures.csv")] == ["b"]
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"a_lesion.nii.gz", "c_lesion.nii.gz"}

    broken.write_bytes(whole)
    status, out, err = predict(**options)
    assert status == 0, err
    assert out.count("already there") == 2
    assert not (tmp_path / "out/failures.csv").exists()
    assert [row["case"] for row in _rows(tmp_path / "out/quantities.csv")] == ["a", "b", "c"]


@pytest.fixture
def done(run, write_scan, tmp_path):
    """(source, function that makes a new Predictor) of a case that is done."""
    write_scan(tmp_path / "scan.nii.gz")
    source = find_scans(tmp_path / "scan.nii.gz")[0]
    segmenters = [load(run)]

    def again(**options):
        return Predictor(segmenters, tmp_path / "out", **{"extension": ".nii.gz", "consolidation_hu": -300, **options})

    again().run(source)
    return source, again


def test_resume_believes_the_manifest_and_not_the_name(done, tmp_path, write_scan):
    """J3: another scan of the same name, other settings, a mask that was changed: each is refused, not skipped."""
    source, again = done
    mask = tmp_path / "out/scan_lesion.nii.gz"
    assert again().run(source).resumed

    with pytest.raises(BadInput, match=r"scan_lesion\.nii\.gz: exists, and is not what"):
        again(consolidation_hu=-200).run(source)
    content = mask.read_bytes()
    mask.write_bytes(content + b"0")
    with pytest.raises(BadInput, match="exists, and is not what"):
        again().run(source)
    mask.write_bytes(content)
    write_scan(source.path, seed=5)
    with pytest.raises(BadInput, match="exists, and is not what"):
        again().run(source)
    assert mask.read_bytes() == content
    assert not again(overwrite=True).run(source).resumed
    assert again().run(source).resumed


def test_a_mask_without_a_manifest_is_not_ours(done, tmp_path):
    source, again = done
    (tmp_path / "out/predictions.json").unlink()
    with pytest.raises(BadInput, match="overwrite=true"):
        again().run(source)


def test_work_that_was_killed_is_done_again(done, tmp_path):
    """J1: the manifest says that it was begun; what lies there may be from before or after the kill."""
    source, again = done
    manifest = read_json(tmp_path / "out/predictions.json")
    expected = sha256(tmp_path / "out/scan_lesion.nii.gz")
    manifest["cases"]["scan"]["files"] = {}
    (tmp_path / "out/predictions.json").write_text(json.dumps(manifest))
    (tmp_path / "out/scan_quantities.json").unlink()
    (tmp_path / "out/.tmp-999999999-x.nii.gz").write_bytes(b"half a mask")
    assert not again().run(source).resumed
    assert sha256(tmp_path / "out/scan_lesion.nii.gz") == expected
    assert not list((tmp_path / "out").glob(".tmp-*"))


def test_a_damaged_manifest_is_refused(done, tmp_path):
    (tmp_path / "out/predictions.json").write_text('{"cases": {"scan": 1}}')
    with pytest.raises(BadInput, match=r"predictions\.json: is damaged"):
        done[1]()


def test_two_processes_share_an_output_folder(run, write_scan, tmp_path):
    """Both began with an empty manifest; the books hold the cases and the refused scans of both in the end."""
    for part in ("a", "b"):
        for number in range(3):
            write_scan(tmp_path / f"{part}/{part}{number}.nii.gz", seed=number)
        (tmp_path / f"{part}/{part}_bad.nii.gz").write_bytes(b"no scan")
    script = Path(__file__).parents[2] / "src/predict.py"
    commands = [
        [sys.executable, script, f"run={run}", f"input={tmp_path}/{part}", f"output={tmp_path}/out"] for part in "ab"
    ]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for command in commands]
    assert [process.wait(300) for process in processes] == [2, 2]
    cases = [f"{part}{number}" for part in "ab" for number in range(3)]
    manifest = read_json(tmp_path / "out/predictions.json")["cases"]
    assert sorted(manifest) == cases and all(entry["files"] for entry in manifest.values())
    assert [row["case"] for row in _rows(tmp_path / "out/quantities.csv")] == cases
    assert {row["case"] for row in _rows(tmp_path / "out/failures.csv")} <= {"a_bad", "b_bad"}


def test_two_predictors_with_one_output(run, write_scan, tmp_path):
    """The same, one step at a time; and for one scan with two settings only one of the two gets the name."""
    sources = []
    for name in ("a", "b"):
        write_scan(tmp_path / f"{name}.nii.gz", seed=ord(name))
        sources += find_scans(tmp_path / f"{name}.nii.gz")
    segmenters = [load(run)]
    first, second, other = (Predictor(segmenters, tmp_path / "out", ".nii.gz", hu) for hu in (-300, -300, -200))
    first.run(sources[0])
    second.run(sources[1])
    assert second.run(sources[0]).resumed
    first.finish({"x": BadInput("x", "is broken")})
    second.finish({})
    assert [row["case"] for row in _rows(tmp_path / "out/quantities.csv")] == ["a", "b"]
    assert [row["case"] for row in _rows(tmp_path / "out/failures.csv")] == ["x"], "of a call that ran beside this one"
    Predictor(segmenters, tmp_path / "out", ".nii.gz", -300).finish({})
    assert not (tmp_path / "out/failures.csv").exists()

    def meanwhile(what, done, total):
        if not (tmp_path / "out/c_lesion.nii.gz").exists():
            first.run(source)

    write_scan(tmp_path / "c.nii.gz", seed=7)
    source = find_scans(tmp_path / "c.nii.gz")[0]
    with pytest.raises(BadInput, match="another process with other weights or settings"):
        other.run(source, meanwhile)
    assert first.run(source).resumed
    for file in ("c_lesion.nii.gz", "c_quantities.json"):
        (tmp_path / "out" / file).unlink()
    assert Predictor(segmenters, tmp_path / "out", ".nii.gz", -300).run(source, meanwhile).resumed


def test_a_manifest_that_is_a_folder_is_refused(done, tmp_path):
    (tmp_path / "out/predictions.json").unlink()
    (tmp_path / "out/predictions.json").mkdir()
    with pytest.raises(BadInput, match=r"predictions\.json: is damaged"):
        done[1]()


@pytest.mark.parametrize("name", ["failures.csv", "quantities.csv"])
def test_tables_of_the_user_are_not_touched(predict, run, write_scan, tmp_path, name):
    """Without a manifest they are not ours; with one they are, also where every scan was refused."""
    write_scan(tmp_path / "in/a.nii.gz")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    options = {"run": run, "input": tmp_path / "in", "output": tmp_path / "mine"}
    status, _, err = predict(**options)
    assert status == 2 and f"{name}: stands in the output folder" in err and err.count("\n") == 1
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [name]
    assert (tmp_path / "mine" / name).read_text() == "mine"
    assert predict(**options, overwrite="true")[0] == 0


def test_an_output_of_refused_scans_only_is_still_ours(predict, run, write_scan, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{name}.nii.gz").write_bytes(b"no scan")
    options = {"run": run, "input": tmp_path / "in", "output": tmp_path / "out"}
    for _ in range(2):
        status, _, err = predict(**options)
        assert status == 2 and "2 of 2 scans were refused" in err


def test_outputs_never_meet_scans(run, write_scan, tmp_path, predict):
    """J2: the mask's name is a scan's; the output is a file; the output lies in a DICOM folder."""
    for name in ("scan", "scan_lesion"):
        write_scan(tmp_path / f"in/{name}.nii.gz")
    hashes = {path: sha256(path) for path in (tmp_path / "in").iterdir()}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/scan.nii.gz").symlink_to(tmp_path / "in/scan.nii.gz")
    (tmp_path / "other/scan_lesion.nii.gz").symlink_to(tmp_path / "in/scan_lesion.nii.gz")
    status, _, err = predict(run=run, input=tmp_path / "other", output=tmp_path / "in", overwrite="true")
    assert status == 2 and "is one of the scans, and would be overwritten" in err
    status, _, err = predict(run=run, input=tmp_path / "in", output=tmp_path / "other/../in", overwrite="true")
    assert status == 2 and "output=in: is the folder of the scans" in err and err.count("\n") == 1
    options = {"run": run, "input": tmp_path / "in", "output": tmp_path / "in/masks", "reading.recursive": "true"}
    status, _, err = predict(**options)
    assert status == 2 and "lies in the folder that is searched for scans" in err
    status, _, err = predict(run=run, input=tmp_path / "in", output=tmp_path / "in/scan.nii.gz")
    assert status == 2 and "is a file -> give a folder" in err
    assert {path: sha256(path) for path in (tmp_path / "in").iterdir()} == hashes


def test_a_fault_of_one_file_or_of_memory_does_not_stop_the_others(predict, run, write_scan, tmp_path, monkeypatch):
    """One may not be read, one does not fit into memory: two masks, both in failures.csv, exit status 3."""
    from covidseg.inference import batch as prediction

    for name in ("a", "b", "c", "d", "e"):
        write_scan(tmp_path / f"in/{name}.nii.gz", seed=ord(name))
    faults = {"a.nii.gz": PermissionError(errno.EACCES, "Permission denied"), "c.nii.gz": MemoryError()}
    faults["d.nii.gz"] = RuntimeError("CUDA error: out of memory")
    read, open_file = prediction.read_scan, os.open

    def read_scan(path, **options):
        if path.name in ("c.nii.gz", "d.nii.gz"):
            raise faults[path.name]
        return read(path, **options)

    def os_open(path, *arguments, **options):
        if os.path.basename(path) == "a.nii.gz":
            raise faults["a.nii.gz"]
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(prediction, "read_scan", read_scan)
    monkeypatch.setattr(os, "open", os_open)
    status, _, err = predict(run=run, input=tmp_path / "in", output=tmp_path / "out")
    assert status == 3 and "3 of 5 scans were refused" in err and err.count("\n") == 1
    refused = {row["case"]: row["error"] for row in _rows(tmp_path / "out/failures.csv")}
    assert list(refused) == ["a", "c", "d"]
    assert "a.nii.gz: permission denied" in refused["a"] and "memory: is not enough" in refused["c"]
    assert [row["case"] for row in _rows(tmp_path / "out/quantities.csv")] == ["b", "e"]


def test_a_fault_of_the_output_disk_ends_the_batch(predict, run, write_scan, tmp_path, monkeypatch):
    """What was done before it is in the table."""
    from covidseg.inference import batch as prediction

    for name in ("a", "b", "c"):
        write_scan(tmp_path / f"in/{name}.nii.gz", seed=ord(name))
    write = prediction.write_mask

    def write_mask(path, *arguments, **options):
        if path.name.startswith("b"):
            raise OSError(errno.EIO, "Input/output error")
        write(path, *arguments, **options)

    monkeypatch.setattr(prediction, "write_mask", write_mask)
    status, _, err = predict(run=run, input=tmp_path / "in", output=tmp_path / "out")
    assert status == 3 and "out: cannot be written (Input/output error)" in err and err.count("\n") == 1
    assert [row["case"] for row in _rows(tmp_path / "out/quantities.csv")] == ["a"]
    assert not (tmp_path / "out/c_lesion.nii.gz").exists()


@pytest.mark.parametrize(("signum", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_call_that_is_ended_leaves_its_table(predict, run, write_scan, tmp_path, monkeypatch, signum, expected):
    from covidseg.inference import batch as prediction

    for name in ("a", "b", "c"):
        write_scan(tmp_path / f"in/{name}.nii.gz", seed=ord(name))
    read = prediction.read_scan

    def read_scan(path, **options):
        if path.name == "c.nii.gz":  # read while the second one is segmented, and the first one written
            os.kill(os.getpid(), signum)
        return read(path, **options)

    options = {"run": run, "input": tmp_path / "in", "output": tmp_path / "out"}
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "read_scan", read_scan)
        try:
            status, _, err = predict(**options)
            assert err.startswith("error: ") and err.count("\n") == 1
        except KeyboardInterrupt:
            status = 130
    assert status == expected
    assert [row["case"] for row in _rows(tmp_path / "out/quantities.csv")] == ["a"]
    status, out, err = predict(**options)
    assert status == 0 and out.count("already there") == 1, err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_is_the_environments_fault(run, write_scan, tmp_path, predict):
    write_scan(tmp_path / "scan.nii.gz")
    (tmp_path / "out").mkdir(mode=0o555)
    assert predict(run=run, input=tmp_path / "scan.nii.gz", output=tmp_path / "out")[0] == 3


def test_no_mask_of_a_network_that_gives_nan(done, tmp_path, monkeypatch):
    """J4."""
    source, again = done
    predictor = again(overwrite=True)
    network = predictor.segmenters[0].network
    monkeypatch.setattr(type(network), "forward", lambda self, x: x.expand(-1, 2, -1, -1, -1) * float("nan"))
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    with pytest.raises(NonFiniteLogits):
        predictor.run(source)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"predictions.json", LOCK}


def test_what_is_passed_over_is_said(predict, run, write_scan, tmp_path):
    write_scan(tmp_path / "in/a.nii.gz")
    options = {"run": run, "input": tmp_path / "in", "output": tmp_path / "out"}
    assert "passed over" not in predict(**options)[1]
    write_scan(tmp_path / "in/deep/b.nii.gz")
    (tmp_path / "in/notes.txt").write_text("x")
    (tmp_path / "in/.hidden").write_text("x")
    assert "2 other files and 1 folder passed over (reading.recursive=true searches deeper)\n" in predict(**options)[1]
    status, out, err = predict(**options, **{"reading.recursive": "true"})
    assert status == 0 and "2 other files passed over\n" in out and "2/2 b" in out, err


def test_mistakes_on_the_command_line_are_one_line(predict, run, write_scan, tmp_path):
    write_scan(tmp_path / "scan.nii.gz")
    good = {"run": run, "input": tmp_path / "scan.nii.gz", "output": tmp_path / "out"}
    for wrong, message in (
        ({"input": tmp_path / "nothing.nii.gz"}, "nothing.nii.gz"),
        ({"run": tmp_path / "no_run"}, "not a run folder"),
        ({"extension": ".png"}, "extension=.png"),
        ({"checkpoint": "newest"}, "auto, last or best"),
        ({"inference.overlap": 1.5}, "inference: overlap 1.5"),
        ({"ouput": "x"}, "ouput"),
        ({"consolidation_hu": "abc"}, "consolidation_hu=abc"),
        ({"consolidation_hu": "nan"}, "consolidation_hu=nan"),
        ({"run": "[]"}, "run: is empty"),
        ({"input": "null"}, "input: is empty"),
        ({"overwrite": "no"}, "overwrite=no: is neither true nor false"),
        ({"inference.whole": "no"}, "inference.whole=no: is neither true nor false"),
    ):
        status, _, err = predict(**{**good, **wrong})
        assert status == 2, wrong
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_script_runs_from_a_bare_clone(run, write_scan, tmp_path):
    write_scan(tmp_path / "scan.nrrd")
    script = Path(__file__).parents[2] / "src/predict.py"
    command = [sys.executable, script, f"run={run}", f"input={tmp_path}/scan.nrrd", f"output={tmp_path}/out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/scan_lesion.nii.gz").is_file()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out", "runs"], "no litter"


def test_implausible_figures_are_flagged_in_every_output(predict, make_run, write_scan, tmp_path):
    """A lesion of 12.6 litres: in the JSON with a key, in the table by its key, on the terminal as a note, and again
    when the case is already there."""
    import torch

    from covidseg.runs.checkpoints import AtomicCheckpointIO, load_checkpoint

    run = make_run("lesion")
    path = run / "checkpoints/last.ckpt"
    state = load_checkpoint(path)["state_dict"]
    bias = [name for name in state if name.endswith(".bias") and state[name].shape == (2,)][-1]
    state[bias] += torch.tensor([-1e6, 1e6])  # all is lesion
    AtomicCheckpointIO().save_checkpoint({"state_dict": state}, path)
    write_scan(tmp_path / "scan.nii.gz")
    options = {"run": run, "input": tmp_path / "scan.nii.gz", "output": tmp_path / "out"}
    for already in (False, True):
        status, out, err = predict(**options)
        assert status == 0, err
        page = read_json(tmp_path / "out/scan_quantities.json")
        texts = {flag["key"]: flag["text"] for flag in page["flags"]}
        assert set(texts) == {"lesion_volume", "no_lung_mask", "cut_off"}
        litres = page["figures"]["lesion_ml"] / 1000
        assert texts["lesion_volume"] == f"{litres:.1f} l of lesion are more than a chest holds (12 l)"
        assert set(texts.values()) <= set(page["notes"])
        assert all(f"note: {text}" in out for text in texts.values())
        assert ("already there" in out) is already
        assert _rows(tmp_path / "out/quantities.csv")[0]["flags"] == "lesion_volume no_lung_mask cut_off"


def test_a_folder_with_two_series_is_read_by_a_rule_and_the_tables_say_which(predict, run, make_dicom, tmp_path):
    """K: patients with a thin and a thick series in one folder; one UID cannot serve two of them."""
    for patient in ("p1", "p2"):
        make_dicom(tmp_path / "in" / patient, uids=(f"1.2.{patient[1]}.1", f"1.2.{patient[1]}.2"))
    status, out, err = predict(run=run, input=tmp_path / "in", output=tmp_path / "refused")
    assert status == 2 and "2 of 2 scans were refused" in err and "reading.series=thinnest" in out
    options = {"run": run, "input": tmp_path / "in", "reading.series": "thinnest"}
    status, out, err = predict(**options, output=tmp_path / "out")
    assert status == 0, err
    rows = _rows(tmp_path / "out/quantities.csv")
    assert [(row["case"], row["source"], row["series"]) for row in rows] == [
        ("p1", "p1", "1.2.1.2"), ("p2", "p2", "1.2.2.2"),
    ]  # fmt: skip
    page = json.loads((tmp_path / "out/p1_quantities.json").read_text())
    assert (page["source"], page["series"]) == ("p1", "1.2.1.2")
    status, out, err = predict(**options | {"reading.series": "all"}, output=tmp_path / "every")
    assert status == 0, err
    assert len(_rows(tmp_path / "every/quantities.csv")) == 4


def test_one_bad_scan_never_stops_a_batch(predict, run, write_scan, tmp_path):
    write_scan(tmp_path / "in/good.nii.gz")
    write_scan(tmp_path / "in/a.nii.gz")
    write_scan(tmp_path / "in/a.nrrd")
    status, _, err = predict(run=run, input=tmp_path / "in", output=tmp_path / "out")
    assert status == 2 and "1 of 2 scans were refused" in err
    assert [row["case"] for row in _rows(tmp_path / "out/quantities.csv")] == ["good"]
    (failure,) = _rows(tmp_path / "out/failures.csv")
    assert failure["case"] == "a" and "same id" in failure["error"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_k12_a_name_that_the_terminal_cannot_print_ends_no_batch(run, write_scan, tmp_path, encoding):
    names = ("josé", "肺", "plain")
    for name in names:
        write_scan(tmp_path / "in" / f"{name}.nii.gz")
    write_scan(tmp_path / "in" / "肺.nrrd")  # refused, which is printed, too
    command = [sys.executable, str(ROOT / "src/predict.py"), f"run={run}", "input=in", "output=out"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr
    assert b"1 of 3 scans were refused" in done.stderr and b"\\u80ba" in done.stdout
    assert [row["case"] for row in _rows(tmp_path / "out/quantities.csv")] == ["josé", "plain"]


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(predict, run, write_scan, tmp_path, monkeypatch):
    """No shell expands it behind an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_scan(tmp_path / "home/in/scan.nii.gz")
    status, _, err = predict(run=run, input="~/in", output="~/masks")
    assert status == 0, err
    assert (tmp_path / "home/masks/scan_lesion.nii.gz").is_file() and not (tmp_path / "~").exists()


def test_a_comma_in_a_path_is_told_how_to_be_written(predict, run, write_scan, tmp_path):
    write_scan(tmp_path / "a,b/scan.nii.gz")
    status, _, err = predict(run=run, input="a,b/scan.nii.gz", output="out")
    assert status == 2
    (remedy,) = re.findall(r"in quotes: '(input=[^']+)'", err)
    key, _, value = remedy.partition("=")
    status, _, err = predict(**{"run": run, key: value, "output": "out"})
    assert status == 0, err


def test_masks_do_not_go_into_an_export_that_is_searched_through(predict, run, make_dicom, tmp_path):
    """Beside a DICOMDIR every folder is searched: the masks would be scans the next time."""
    make_dicom(tmp_path / "export/PAT1/SER1", uids=("1.2.1",), thicknesses=(8.0,))
    (tmp_path / "export/DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    status, _, err = predict(run=run, input=tmp_path / "export", output=tmp_path / "export/masks")
    assert status == 2 and "searched for scans" in err and not (tmp_path / "export/masks").exists()
    status, _, err = predict(run=run, input=tmp_path / "export", output=tmp_path / "masks")
    assert status == 0, err
    (row,) = _rows(tmp_path / "masks/quantities.csv")
    assert (row["case"], row["source"]) == ("SER1", "PAT1/SER1")


def test_half_precision_on_a_cpu_without_units_is_warned_of(predict, run, write_scan, tmp_path, monkeypatch):
    write_scan(tmp_path / "scan.nii.gz")
    monkeypatch.setattr("covidseg.inference.window.has_bf16_units", lambda: False)
    options = {"run": run, "input": tmp_path / "scan.nii.gz", "output": tmp_path / "out"}
    assert "note: bfloat16 on this CPU" in predict(**options, **{"inference.precision": "bfloat16"})[1]
    assert "on this CPU" not in predict(**options, overwrite="true")[1]


def test_a_box_of_the_lungs_is_used_where_they_are_found_and_said_where_not(in_process, make_run, tmp_path):
    """A phantom's lungs fill their box; a block of tissue has none."""
    from covidseg.phantom.make import make_phantom

    made = make_phantom(5, (48, 64, 64), patient=4)
    (tmp_path / "scans").mkdir()
    for name, hu in (("chest", made.hu), ("block", np.full((40, 40, 40), 40, np.int16))):
        hu = hu.copy()
        hu[:, :2] = -1000  # air around the block, as any scan has
        image = sitk.GetImageFromArray(hu)
        image.SetSpacing([float(step) for step in reversed(made.spacing_zyx)])
        sitk.WriteImage(image, str(tmp_path / "scans" / f"{name}.nii.gz"))
    command = ("predict", f"run={make_run('lung')}", "input=scans", "reading.assume.hu=true")
    status, out, err = in_process(*command, "output=lungs", "inference.box=lungs")
    assert (status, err) == (0, ""), err
    assert out.count("the whole body is segmented, not the lungs' box: ") == 1
    status, plain, err = in_process(*command, "output=body")
    assert (status, err) == (0, "") and "lungs' box" not in plain
    manifest = json.loads((tmp_path / "lungs" / "predictions.json").read_text())
    assert [one["box"] for one in manifest["cases"]["chest"]["request"]["inference"]] == ["lungs"]
    status, out, _ = in_process(*command, "output=lungs", "inference.box=body")
    assert status == 2 and out.count("is not what this command wrote") == 2  # another box makes other masks
    assert in_process(*command, "output=other", "inference.box=chest")[2].startswith("error: inference.box=chest: ")


@pytest.mark.parametrize(("extension", "kept"), [(".nii.gz", ".nii.gz"), (".mha", ".mha"), (".seg.nrrd", ".nrrd")])
def test_probabilities_on_request_lie_on_the_scans_grid_and_agree_with_the_mask(
    predict, run, write_scan, tmp_path, extension, kept
):
    """Read by SimpleITK alone: the mask is where the map is above a half, and both cover the same millimetres."""
    _, scan = write_scan(tmp_path / "scan.nii.gz")
    options = {"input": tmp_path / "scan.nii.gz", "output": tmp_path / "out", "extension": extension}
    status, _, err = predict(run=run, probabilities="true", **options)
    assert status == 0, err
    image = sitk.ReadImage(str(tmp_path / f"out/scan_lesion_probability{kept}"))
    assert image.GetSize() == scan.GetSize() and image.GetPixelIDTypeAsString() == "32-bit float"
    np.testing.assert_allclose(image.GetDirection(), scan.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), scan.GetOrigin(), atol=1e-4)
    probability = sitk.GetArrayFromImage(image)
    mask = _labels(tmp_path / f"out/scan_lesion{extension}")
    assert 0 <= probability.min() < 0.5 < probability.max() <= 1
    assert np.array_equal(mask > 0, probability > 0.5)
    manifest = read_json(tmp_path / "out/predictions.json")["cases"]["scan"]["files"]
    assert f"scan_lesion_probability{kept}" in manifest
    status, out, _ = predict(run=run, probabilities="true", **options)
    assert status == 0 and "segmented" not in out, "done before"


def test_no_map_is_written_unasked(predict, run, write_scan, tmp_path):
    write_scan(tmp_path / "scan.nii.gz")
    assert predict(run=run, input=tmp_path / "scan.nii.gz", output=tmp_path / "out")[0] == 0
    assert not list((tmp_path / "out").glob("*probability*"))


def test_a_page_on_request_holds_the_scan_and_its_masks(predict, run, write_scan, tmp_path):
    """Whole by itself, with the figures; what is in it is on the scan turned to Superior, Posterior, Left."""
    write_scan(tmp_path / "scan.nii.gz")
    options = {"input": tmp_path / "scan.nii.gz", "output": tmp_path / "out"}
    status, _, err = predict(run=run, report="true", **options)
    assert status == 0, err
    text = (tmp_path / "out/scan_report.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" class="case"[^>]*>(.*?)</script>', text, re.DOTALL)
    case = json.loads(data)
    depth, height, width = case["shape"]
    bits = np.frombuffer(zlib.decompress(base64.b64decode(case["masks"]["lesion"]["prediction"])), np.uint8)
    assert case["case"] == "scan" and "lesion ml" in text and "Research use only" in text
    shown = np.unpackbits(bits, count=depth * height * width).sum() * np.prod(case["spacing"]) / 1000
    figures = read_json(tmp_path / "out/scan_quantities.json")["figures"]
    assert shown == pytest.approx(figures["lesion_ml"], rel=0.05)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "scan_report.html" in read_json(tmp_path / "out/predictions.json")["cases"]["scan"]["files"]
    status, out, _ = predict(run=run, report="true", **options)
    assert status == 0 and "segmented" not in out, "done before"
    assert predict(run=run, **options)[0] == 2, "without the page it is other work, as with probabilities"
