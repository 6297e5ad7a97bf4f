"""Sweeps of the real train.py: what Hydra's own launcher does wrong in silence, and the same table after any kill."""

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from covidseg.runs.checkpoints import load_checkpoint
from covidseg.runs.folder import RunFolder
from covidseg.system.files import read_json

SCRIPT = Path(__file__).parents[1] / "faulty_train.py"
FOREVER = 500
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def start(train_options, tmp_path):
    """`start("-m", "seed=0,1", fault="1:3:raise")` -> the process; its runs are below tmp_path/runs/t."""

    def run(*arguments, fault=""):
        flags = [argument for argument in arguments if argument == "-m"]  # argparse wants them before all overrides
        overrides = [*train_options, *(argument for argument in arguments if argument != "-m")]
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *flags, *overrides],
            env={**os.environ, "FAULT": fault, "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def finish(process):
    out, err = process.communicate(timeout=FOREVER)
    return process.returncode, out, err


def weights(folder):
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


def same_weights(one, other):
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("devices", ["1,2", "2,3", "2,1"])
def test_a_run_of_a_sweep_is_the_run_it_would_be_alone(start, tmp_path, devices):
    sweep = start("-m", "row=d${trainer.devices}", f"trainer.devices={devices}", "hydra.launcher.slots=3")
    status, out, err = finish(sweep)
    assert status == 0, out + err
    for count in map(int, devices.split(",")):
        status, _, err = finish(start(f"row=alone{count}", f"trainer.devices={count}"))
        assert status == 0, err
        swept, alone = (tmp_path / f"runs/t/{row}/lesion/seed0" for row in (f"d{count}", f"alone{count}"))
        assert read_json(swept / "manifest.json")["attempts"][-1]["processes"] == count
        assert same_weights(swept, alone)
        assert (swept / "cases.csv").read_text() == (alone / "cases.csv").read_text()


def test_a_rank_that_fails_alone_fails_its_run_and_no_other(start, tmp_path):
    sweep = start("-m", "row=d${trainer.devices}", "trainer.devices=2,1", "hydra.launcher.slots=2", fault="1:3:raise")
    status, out, err = finish(sweep)
    assert status == 1, out + err
    assert "1 of 2 runs are unfinished (1 failed)" in err
    assert "the fault that the test asked for" in out
    assert RunFolder(tmp_path / "runs/t/d1/lesion/seed0").is_finished


def test_kills_at_any_moment_end_in_the_same_table(start, tmp_path):
    """The driver, one run, or all of it, killed again and again; what was finished before a kill stays untouched."""
    runs, chance = ["-m", "hydra.launcher.slots=2", "seed=0,1,2"], random.Random(4)
    assert finish(start(*runs, "row=whole"))[0] == 0
    folders = [tmp_path / f"runs/t/killed/lesion/seed{seed}" for seed in range(3)]
    done = {}
    for victim in ("driver", "one", "all", "one", "driver", "all"):
        driver = start(*runs, "row=killed")
        time.sleep(chance.uniform(3, 25))
        children = [int(pid) for pid in Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()]
        victims = {"driver": [driver.pid], "one": children[:1], "all": [driver.pid, *children]}[victim]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        finish(driver)
        while any(RunFolder(folder).is_locked() for folder in folders):  # a killed driver's runs are saving
            time.sleep(0.2)
        for folder in folders:
            if RunFolder(folder).is_finished:
                content = (folder / "metrics.json").read_bytes(), (folder / "metrics.json").stat().st_mtime_ns
                assert done.setdefault(folder, content) == content
    status, out, err = finish(start(*runs, "row=killed"))
    assert status == 0, out + err
    for seed, folder in enumerate(folders):
        whole = tmp_path / f"runs/t/whole/lesion/seed{seed}"
        assert same_weights(folder, whole)
        with open(folder / "cases.csv") as ours, open(whole / "cases.csv") as theirs:
            assert list(csv.reader(ours)) == list(csv.reader(theirs))
    assert not list((tmp_path / "runs").rglob(".tmp-*"))


def test_gpus_that_torch_does_not_find_fail_each_run_at_once(start, tmp_path, monkeypatch):
    """On a machine whose torch is a build for CPUs: nothing is trained on the CPU in silence."""
    monkeypatch.setenv("GPUS", "0-1")
    status, out, _ = finish(start("-m", "row=a,b", "trainer.accelerator=auto"))
    assert status == 1 and "2 runs: 2 to run; on 2 GPUs (0, 1)" in out
    assert out.count("was given to this run, and torch finds 0 of 1") >= 2, out
    assert not list(tmp_path.glob("runs/*/*/*/*/checkpoints/*.ckpt"))
