"""Several processes train one run: gloo on the CPU, started as a user starts them."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from covidseg.runs.checkpoints import load_checkpoint
from covidseg.runs.folder import RunFolder, run_dir
from covidseg.training import processes
from covidseg.training.run import train

SCRIPT = Path(__file__).parents[1] / "faulty_train.py"
FOREVER = 240  # on a loaded machine each process needs half a minute to import its libraries


@pytest.fixture
def launch(train_options, tmp_path):
    """`launch(2, "training.max_steps=4", fault="1:2:raise")` -> (exit status, stderr, seconds, run folder)."""

    def run(devices, *overrides, fault="", row="r"):
        command = [sys.executable, str(SCRIPT), *train_options, f"trainer.devices={devices}", f"row={row}", *overrides]
        environment = {**os.environ, "FAULT": fault, "OMP_NUM_THREADS": "1"}
        started = time.monotonic()
        done = subprocess.run(
            command,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=FOREVER,
            start_new_session=True,
        )
        return (
            done.returncode,
            done.stderr,
            time.monotonic() - started,
            RunFolder(tmp_path / f"runs/t/{row}/lesion/seed29"),
        )

    return lambda *arguments, **options: run(*arguments, "seed=29", **options)


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_prepared_folder_is_announced_to_own_children_only_and_no_longer_than_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_PARENT", os.getpid() + 1)
    with processes.announced_to_children(tmp_path / "ours"):
        inherited = os.environ["COVIDSEG_PREPARED"]
        assert processes.announced() is None  # the first process asks nobody
    assert "COVIDSEG_PREPARED" not in os.environ
    monkeypatch.setattr(processes, "rank", lambda: 1)
    monkeypatch.setenv("COVIDSEG_PREPARED", inherited)
    assert processes.announced() is None  # a task that a cluster started, in an environment that was copied to it
    monkeypatch.setattr(processes, "_PARENT", os.getpid())
    assert processes.announced() == str(tmp_path / "ours")


ONE_STEP = ["training.max_steps=1", "training.validate_every=1", "optimizer.lr=0"]  # the same weights on any number


@pytest.mark.slow
def test_processes_that_train_on_everything_end_without_a_score(launch, tmp_path):
    status, err, _, _ = launch(2, *ONE_STEP, "fold=all")
    assert status == 0, err
    folder = RunFolder(tmp_path / "runs/t/r/lesion/seed29-foldall")
    assert folder.is_finished and folder.asks_for_no_score and folder.status["state"] == "finished"


@pytest.mark.parametrize("processes", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 6))])
def test_scores_do_not_depend_on_the_number_of_processes(launch, train_config, processes):
    """Six processes for four training, two validation and two held-out cases: some have nothing to score.

    Validation sees the first process's batch statistics everywhere, as DDP hands them out; the checkpoint holds them.
    """
    cfg = train_config(*ONE_STEP, "seed=29", "row=one")
    train(cfg)
    alone = RunFolder(run_dir(cfg))
    status, stderr, _, together = launch(processes, *ONE_STEP, row="many")
    assert status == 0, stderr
    assert rows(alone.path / "cases.csv") == rows(together.path / "cases.csv")
    validation = [
        {key: value for key, value in rows(folder.path / "metrics.csv")[-1].items() if key.startswith("val/")}
        for folder in (alone, together)
    ]
    assert validation[0] == validation[1] and 0 < float(validation[0]["val/dice"]) < 1
    assert sorted(row["case"] for row in rows(together.path / "cases.csv")) == ["c6", "c7"]
    assert not list(together.path.parent.rglob("*rank*"))


@pytest.mark.parametrize(
    "fault",
    ["1:3:term", pytest.param("0:3:term", marks=pytest.mark.slow), pytest.param("0:3:group", marks=pytest.mark.slow)],
)
def test_a_signal_to_any_process_saves_on_all(launch, fault):
    status, stderr, _, folder = launch(2, fault=fault)
    assert status == 143 and stderr.count("error:") == 1, stderr
    assert folder.status["state"] == "interrupted"
    assert load_checkpoint(folder.checkpoints / "last.ckpt")["global_step"] == 4  # the flag is looked at between steps


@pytest.mark.slow
def test_a_stopped_run_of_two_processes_ends_like_one_that_was_not_stopped(launch):
    *_, whole = launch(2, row="whole")
    *_, stopped = launch(2, fault="1:3:term")
    assert launch(2)[0] == 0
    states = [load_checkpoint(folder.checkpoints / "last.ckpt")["state_dict"] for folder in (whole, stopped)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert rows(whole.path / "cases.csv") == rows(stopped.path / "cases.csv")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status", "cause"),
    [
        ("1:3:raise", 1, "process 1: the fault that the test asked for"),
        ("0:3:raise", 1, "the fault that the test asked for"),
        ("1:3:oom", 3, "process 1: memory: exhausted by 2 patches of 16 x 16 x 16"),
        ("1:3:kill", 3, "process 1: was ended by SIGKILL"),
        ("1:3:nan", 2, "the loss is not finite after step 4"),
    ],
)
def test_a_fault_of_one_process_ends_all_and_names_its_cause(launch, fault, status, cause):
    seen, stderr, seconds, folder = launch(2, fault=fault)
    assert (seen, folder.status["state"]) == (status, "failed"), stderr
    assert cause in stderr and cause in folder.status["reason"]
    assert seconds < FOREVER / 2
    assert not folder.is_locked()
    if fault.endswith("nan"):
        assert "cases c" in stderr


@pytest.mark.slow
def test_the_others_do_not_outlive_a_killed_first_process(launch):
    status, *_, folder = launch(2, fault="0:3:kill")
    assert status == -9
    time.sleep(2)
    left = subprocess.run(["pgrep", "-f", str(folder.path.parents[3])], capture_output=True, text=True).stdout
    assert not left.strip()
    assert launch(2)[0] == 0
