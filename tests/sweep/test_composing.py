"""A sweep's configurations are those that Hydra composes, each composed once; a dry run only says what it would do."""

import os
import subprocess
import sys
import time

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from covidseg.config.paths import CONF, ROOT
from covidseg.runs.folder import config_hash, run_dir
from covidseg.sweep.composing import Composer

JOBS = [
    ["experiments/table2=fv", "task=lesion", "seed=0"],
    ["experiments/table2=fv", "task=lesion", "seed=3"],
    ["seed=3", "experiments/table2=fv", "task=lung", "fold=2"],
    ["experiments/table2=fv", "task=lung", "fold=null", "seed=4", "row='s${seed}'"],
    ["model=unet3d", "++training.max_steps=7", "fold=all"],
]


@pytest.fixture
def loader():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().hydra.config_loader


def test_what_is_shared_and_copied_is_what_hydra_composes(loader):
    from hydra.types import RunMode

    master = loader.load_configuration("train", [], RunMode.MULTIRUN)
    counted = []
    original = loader.load_sweep_config
    loader.load_sweep_config = lambda master, overrides: counted.append(overrides) or original(master, overrides)
    checked = []
    composer = Composer(loader, checked.append)
    for overrides in JOBS:
        loader.load_sweep_config(master_config=master, sweep_overrides=overrides)  # as the sweeper checks a batch
    ours = [composer.compose(master, overrides) for overrides in JOBS]
    for cfg, overrides in zip(ours, JOBS, strict=True):
        whole = compose("train", overrides=overrides)
        assert config_hash(cfg) == config_hash(whole) and run_dir(cfg) == run_dir(whole)
        assert cfg.seed == whole.seed and cfg.fold == whole.fold
    assert len(counted) == len(checked) == 4
    assert ours[0].seed == 0 and ours[3].row == "s4"


def plan(tmp_path, *arguments, dry_run="true"):
    command = [sys.executable, str(ROOT / "src/train.py"), *arguments, f"dry_run={dry_run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)


def test_a_hundred_and_eighty_runs_are_planned_in_seconds_and_nothing_is_written(tmp_path):
    seeds = f"seed={','.join(map(str, range(9)))}"
    began = time.process_time(), os.times().children_user
    done = plan(tmp_path, "sweep=ablation", seeds, "data=phantom", "recipe=smoke", "trainer=cpu", "logger=csv")
    spent = os.times().children_user - began[1]
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("planning 180 runs")
    assert "180 runs: 180 to run" in done.stdout and "dry_run=true: nothing was started" in done.stdout
    assert done.stdout.count(": waiting") == 180
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "multirun.yaml"]
    assert spent < 40  # of processor time; twice and more of it before compositions were shared, ten on a quiet machine


def test_a_dry_run_of_one_run_says_what_it_would_do(tmp_path):
    done = plan(tmp_path, "model=unet3d", "recipe=smoke", "trainer=cpu", "logger=csv")
    assert done.returncode == 0, done.stderr
    assert "train/unet3d/lesion/seed0 would train for 8 steps" in done.stdout and "M parameters" in done.stdout
    assert list(tmp_path.iterdir()) == []
    wrong = plan(tmp_path, "model=unet3d", "recipe=smoke", "training.max_steps=0")
    assert wrong.returncode == 2 and "training.max_steps=0" in wrong.stderr
    assert wrong.stdout == ""


@pytest.mark.parametrize("arguments", [["model=unet3d"], ["-m", "model=unet3d,vnet"]], ids=["run", "sweep"])
def test_a_word_that_is_neither_true_nor_false_starts_nothing(tmp_path, arguments):
    done = plan(tmp_path, *arguments, "recipe=smoke", "trainer=cpu", "logger=csv", dry_run="no")
    assert done.returncode == 2 and "dry_run=no: is neither true nor false" in done.stderr
    assert not list(tmp_path.rglob("config.yaml"))
