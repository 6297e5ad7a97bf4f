"""A run that was stopped and started again ends with the bits of one that was not."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from covidseg import tracking
from covidseg.runs.checkpoints import load_checkpoint
from covidseg.runs.folder import RunFolder, run_dir
from covidseg.system.errors import Interrupted
from covidseg.training.run import train
from stopping import Kill, assert_same

HARD = [  # everything that has a state or draws random numbers
    "augment=strong", "augment.spatial.probability=0.5", "augment.noise.probability=0.5", "optimizer=adamw",
    "optimizer.lr=0.002", "seed=29",  # whose first weights find some lesion
    "training.max_steps=9", "training.validate_every=3", "training.evaluate=best", "training.checkpoint_every=2",
    "training.log_every=4", "training.gradient_clip=1.0",
]  # fmt: skip


@pytest.fixture
def train_until(monkeypatch):
    """`train_until(cfg, Kill(...))`: trains, and sends the signal; returns the exception."""
    original = tracking.callbacks

    def run(cfg, kill):
        monkeypatch.setattr(tracking, "callbacks", lambda cfg: [*original(cfg), kill])
        with pytest.raises(Interrupted) as caught:
            train(cfg)
        monkeypatch.setattr(tracking, "callbacks", original)
        return caught.value

    return run


def state(cfg, name="last.ckpt"):
    return load_checkpoint(run_dir(cfg) / "checkpoints" / name)


@pytest.fixture(scope="module")
def uninterrupted():
    """The run that nobody stopped: made by the first test that needs it, since configurations are made per test."""
    return {}


def whole(uninterrupted, train_config, tmp_path_factory):
    if not uninterrupted:
        cfg = train_config(*HARD, f"paths.runs={tmp_path_factory.mktemp('whole')}")
        metrics = train(cfg)
        uninterrupted.update(cfg=cfg, metrics=metrics)
    return uninterrupted["cfg"], uninterrupted["metrics"]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kill",
    [
        Kill(4, signal.SIGINT),
        Kill(6, in_validation=True),
        pytest.param(Kill(6), marks=SLOW),
        pytest.param(Kill(1), marks=SLOW),
        pytest.param(Kill(9, signal.SIGUSR1), marks=SLOW),
        pytest.param(Kill(9, in_validation=True), marks=SLOW),
    ],
    ids=str,
)
def test_stopped_and_resumed_equals_uninterrupted(uninterrupted, train_config, train_until, tmp_path_factory, kill):
    reference, metrics = whole(uninterrupted, train_config, tmp_path_factory)
    cfg = train_config(*HARD)
    error = train_until(cfg, kill)
    assert error.exit_code == 128 + kill.signum
    folder = RunFolder(run_dir(cfg))
    assert folder.status["state"] == "interrupted" and not folder.is_finished
    resumed = train(cfg)
    assert_ends_alike(cfg, reference)
    assert resumed["sets"] == metrics["sets"]


def assert_ends_alike(cfg, reference):
    """Weights, optimiser, schedule, best checkpoint and curves, to the last bit."""
    ours, theirs = state(cfg), state(reference)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(ours[part], theirs[part], part)
    assert_same(ours["callbacks"]["SaveAndStop"], theirs["callbacks"]["SaveAndStop"], "callbacks")
    assert (
        ours["callbacks"]["ProgressReporter"]["patches"] == theirs["callbacks"]["ProgressReporter"]["patches"] == 9 * 2
    )
    assert_same(state(cfg, "best.ckpt")["state_dict"], state(reference, "best.ckpt")["state_dict"], "best")
    assert curves(cfg) == curves(reference) and {row["step"] for row in curves(cfg)} >= {"4", "8", "9"}


def curves(cfg):
    with open(run_dir(cfg) / "metrics.csv", newline="") as stream:
        return [{k: v for k, v in row.items() if k != "train/patches_per_second"} for row in csv.DictReader(stream)]


@pytest.mark.slow
def test_killed_by_the_kernel_and_resumed_equals_uninterrupted(
    uninterrupted, train_config, train_options, tmp_path_factory
):
    reference, _ = whole(uninterrupted, train_config, tmp_path_factory)
    script = Path(__file__).parents[1] / "faulty_train.py"
    environment = {**os.environ, "FAULT": "0:5:kill"}
    done = subprocess.run([sys.executable, str(script), *train_options, *HARD], env=environment, timeout=240)
    assert done.returncode == -signal.SIGKILL
    cfg = train_config(*HARD)
    assert RunFolder(run_dir(cfg)).status["state"] == "running" and not RunFolder(run_dir(cfg)).is_locked()
    train(cfg)
    assert_ends_alike(cfg, reference)
