"""Sweeps over data without a test set: their folds by themselves, every run counted, and a scored table at the end."""

import os
import subprocess
import sys
import time

import pytest

from covidseg.config.paths import ROOT
from covidseg.sweep import folds as folds_module
from covidseg.sweep import launch as launching
from covidseg.system.files import read_json

SEEDS = 3  # of each row, unless `seed=` says otherwise
TWO = ("experiments/table1=fcn,unet3d", "task=lesion")


@pytest.fixture
def planned(monkeypatch, command, tmp_path):
    """`planned("sweep=comparison", ...)` -> (exit status, names of the runs it would make, stdout, stderr)."""

    def plan(*arguments):
        rows = []
        monkeypatch.setattr(launching, "launch", lambda found, *_, **__: rows.extend(found))
        status, out, err = command("sweep", *arguments, "trainer=cpu")
        return status, rows, out, err

    return plan


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["sweep=comparison"], 6 * 2 * 5 * SEEDS),
        (["sweep=ablation", "seed=0"], 10 * 2 * 5),
        pytest.param(["sweep=ablation"], 10 * 2 * 5 * SEEDS, marks=pytest.mark.slow),
        (["sweep=comparison", *TWO, "fold=0,1"], 2 * 2 * SEEDS),
        (["sweep=comparison", *TWO, "fold=all"], 2 * SEEDS),
        (["sweep=ablation", "experiments/table2=full,unet4", "task=lesion"], 2 * 5 * SEEDS),
        (["-m", "model=fcn,unet3d"], 2 * 5),
        (["sweep=comparison", *TWO, "data.splits.published=covid19_ct_seg_4train.json"], 2 * 5 * SEEDS),
        (["sweep=comparison", *TWO, "data.splits.published=null", "data.splits.folds=3"], 2 * 3 * SEEDS),
        (["sweep=comparison", *TWO, "data.splits.test_fraction=0.2"], 2 * SEEDS),
    ],
)
def test_the_grid_is_that_of_rows_tasks_seeds_and_folds(planned, ct_seg, arguments, count):
    began = time.monotonic()
    status, rows, out, err = planned(*arguments, "data=covid19_ct_seg", f"data.root={ct_seg}")
    assert status == 0, err
    assert len(rows) == len({row.name for row in rows}) == count
    by_itself = not any("fold=" in argument or "test_fraction" in argument for argument in arguments)
    number = 3 if "data.splits.folds=3" in arguments else 5
    said = f"covid19_ct_seg has no test set: cross-validated, {number} folds of each row"
    jobs = count // number if by_itself else count
    begins = [f"planning {jobs} runs"] if jobs > 50 else []  # which takes seconds
    assert out.splitlines() == begins + ([said] if by_itself else [])
    if by_itself:
        assert {row.name.rsplit("-", 1)[1] for row in rows} == {f"fold{k}" for k in range(number)}
        assert all(row.overrides[-1] == f"fold={row.name[-1]}" for row in rows)
        single = rows[0]
        assert sum(override.startswith("fold=") for override in single.overrides) == 1
    assert time.monotonic() - began < 90


@pytest.mark.parametrize(
    ("arguments", "count"), [(["sweep=demo"], 2), (["sweep=ablation", "data=phantom", "seed=0"], 20)]
)
def test_data_with_a_test_set_are_not_even_listed(planned, monkeypatch, tmp_path, arguments, count):
    monkeypatch.setattr(folds_module.subprocess, "run", None)
    status, rows, out, err = planned(*arguments)
    assert status == 0 and len(rows) == count and out == "", err
    assert not (tmp_path / "data").exists()  # no phantom was computed


def test_data_are_listed_once_for_all_jobs(planned, ct_seg, monkeypatch):
    asked, run = [], subprocess.run
    monkeypatch.setattr(folds_module.subprocess, "run", lambda *args, **how: (asked.append(how), run(*args, **how))[1])
    assert planned("sweep=comparison", *TWO, "data=covid19_ct_seg", f"data.root={ct_seg}")[0] == 0
    (question,) = asked
    assert question["input"].count("_target_") == 1


def test_a_prepared_folder_says_itself_how_it_is_divided(command, planned, ct_seg, prepared_here, tmp_path):
    public = ["data=covid19_ct_seg", f"data.root={ct_seg}", "data.splits.seed=5", "fold=0", "name=t", "row=r"]
    assert command("train", *public)[0] == 0
    manifest = read_json(tmp_path / "runs/t/r/lesion/seed0-fold0/manifest.json")
    folder = prepared_here / "prepared" / f"covid19_ct_seg-{manifest['data']['hash']}"
    status, rows, _, err = planned("sweep=comparison", *TWO, "data=covid19_ct_seg", f"data.prepared={folder}")
    assert status == 0 and len(rows) == 10 * SEEDS, err


def test_declared_test_cases_need_no_folds(planned, write_folder):
    data = write_folder("abc", csv="case,split\na,test\n")
    status, rows, out, err = planned("sweep=comparison", *TWO, *data, "data.splits.test_fraction=0")
    assert status == 0 and len(rows) == 2 * SEEDS and out == "", err


def test_what_is_wrong_with_the_data_is_said_once_and_nothing_starts(planned, write_folder, tmp_path):
    status, rows, _, err = planned("sweep=comparison", *TWO, "data=covid19_ct_seg", "data.root=nowhere")
    assert (status, rows) == (2, []) and err.startswith("error: data.root=nowhere: there is no such folder -> ")
    data = [*write_folder("abc"), "data.splits.test_fraction=0"]
    status, rows, _, err = planned("sweep=comparison", *TWO, *data)
    assert (status, rows) == (2, []) and "has no test set, so a run could not be scored -> data.splits.test_" in err
    status, rows, _, _ = planned("sweep=comparison", *TWO, *data, "data.splits.folds=3")
    assert status == 0 and len(rows) == 2 * 3 * SEEDS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_over_data_without_a_test_set_ends_with_a_scored_table(write_folder, tmp_path):
    small = [
        "recipe=smoke", "data.spacing_zyx=[9,9,9]", "training.patch_size_zyx=[16,16,16]", "data.workers=0",
        "inference.roi_zyx=[32,32,32]", "training.max_steps=2", "training.validate_every=2", "logger=csv",
        "trainer=cpu", "hydra.launcher.slots=2", "data.splits.folds=2", "data.splits.test_fraction=0",
    ]  # fmt: skip

    def sweep(*arguments):
        script = str(ROOT / "src" / "train.py")
        rows = ["sweep=ablation", "experiments/table2=unet4,full", "task=lesion", "seed=0"]
        return subprocess.run(
            [sys.executable, script, *rows, *write_folder("abcd"), *small, *arguments],
            cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    done = sweep()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "folder has no test set: cross-validated, 2 folds of each row" in done.stdout
    assert "table2: all 4 runs are done" in done.stdout
    results = tmp_path / "experiments" / "table2" / "results"
    table = (results / "table.md").read_text()
    assert "2-fold cross-validation" in table and "2-fold cross-validation" in (results / "report.html").read_text()
    statistics = read_json(results / "statistics.json")
    (block,) = statistics["sets"]
    assert block["protocol"] == "2-fold cross-validation"
    assert {line["method"]: (line["runs"], line["n"]) for line in block["lines"] if line["runs"]} == {
        "unet4": (2, 4), "full": (2, 4),
    }  # fmt: skip
    assert "4 done" in sweep().stdout
    done = sweep("fold=all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 2 runs are done, 2 trained, not scored" in done.stdout
    again = sweep()  # what asked for no score is no part of the table
    assert read_json(results / "statistics.json")["sets"] == statistics["sets"], again.stdout
