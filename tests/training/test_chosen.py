"""What a Lightning user turns on first: accumulated gradients, callbacks, a profiler, a strategy."""

import csv
import os
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch

from covidseg import tracking
from covidseg.data.store import PreparedDataset
from covidseg.data.train.datamodule import CTDataModule
from covidseg.runs.checkpoints import load_checkpoint
from covidseg.runs.folder import RunFolder, config_hash, plain, run_dir
from covidseg.system.errors import BadInput, Interrupted
from covidseg.system.signals import StopRequest
from covidseg.training.parts import build_task
from covidseg.training.run import train
from stopping import Kill, assert_same

SHORT = ["training.max_steps=4", "training.validate_every=2", "training.checkpoint_every=1", "training.log_every=1"]


class Weights(pl.Callback):
    """Remembers the network's weights after each step."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen[trainer.global_step] = {n: v.clone() for n, v in pl_module.network.state_dict().items()}


@pytest.fixture
def train_with(monkeypatch):
    """`train_with(cfg, callback)`: trains with one more callback."""
    original = tracking.callbacks

    def run(cfg, callback):
        with monkeypatch.context() as patch:
            patch.setattr(tracking, "callbacks", lambda cfg: [*original(cfg), callback])
            return train(cfg)

    return run


def weights(cfg, name="last.ckpt"):
    return load_checkpoint(run_dir(cfg) / "checkpoints" / name)["state_dict"]


def log(cfg):
    with open(run_dir(cfg) / "metrics.csv", newline="") as stream:
        return {int(row["step"]): row for row in csv.DictReader(stream)}


def test_an_accumulated_step_is_the_mean_gradient_of_its_parts(train_config, prepared):
    cfg = train_config("trainer.accumulate_grad_batches=3", "training.max_steps=1", "training.validate_every=1")
    train(cfg)
    task = build_task(cfg, StopRequest())
    data = CTDataModule(PreparedDataset.open(prepared), None, ["lesion"], plain(cfg)["training"], cfg.seed)
    loader = data.train_dataloader()
    optimizer = task.configure_optimizers()["optimizer"]
    for part in range(3):  # by hand: what three ranks train on in step 0
        loader.sampler.rank, loader.sampler.ranks = part, 3
        (task.training_step(loader.load(0), 0)["loss"] / 3).backward()
    optimizer.step()
    made = weights(cfg)
    for name, value in task.network.named_parameters():
        torch.testing.assert_close(made[f"network.{name}"], value, atol=2e-7, rtol=1e-4)
    attempt = RunFolder(run_dir(cfg)).manifest["attempts"][-1]
    assert attempt["effective_batch_size"] == 3 * cfg.training.batch_size
    assert set(log(cfg)) == {1}


def test_another_effective_batch_by_accumulation_is_refused(train_config):
    train(train_config(*SHORT))
    with pytest.raises(BadInput, match=r"effective batch 2 there, 6 here.*trainer\.devices=1"):
        train(train_config(*SHORT, "trainer.accumulate_grad_batches=3"))


def test_accumulating_and_averaging_runs_that_were_stopped_end_like_those_that_were_not(train_config, train_with):
    options = [*SHORT, "trainer.accumulate_grad_batches=2", "callbacks=[weight_averaging,early_stopping,lr_monitor]"]
    whole, stopped = train_config(*options, "row=whole"), train_config(*options)
    train(whole)
    with pytest.raises(Interrupted):
        train_with(stopped, Kill(3))
    train(stopped)
    ours, theirs = (load_checkpoint(run_dir(cfg) / "checkpoints" / "last.ckpt") for cfg in (stopped, whole))
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert_same(ours[part], theirs[part], part)
    assert_same(ours["callbacks"]["WeightAveraging"], theirs["callbacks"]["WeightAveraging"])
    assert_same(weights(stopped, "best.ckpt"), weights(whole, "best.ckpt"))
    ours, theirs = ([without_times(row) for row in log(cfg).values()] for cfg in (stopped, whole))
    assert ours == theirs


def without_times(row):
    return {name: value for name, value in row.items() if "second" not in name}


def test_a_run_ends_with_the_moving_average_of_its_weights(train_config, train_with):
    cfg = train_config(
        *SHORT, "callbacks=weight_averaging", "callbacks.weight_averaging.decay=0.3", "optimizer.lr=0.01"
    )
    start = {name: v.clone() for name, v in build_task(cfg, StopRequest()).network.state_dict().items()}
    weights_of = Weights()
    train_with(cfg, weights_of)
    average = {name: value for name, value in start.items() if value.is_floating_point()}
    for step, seen in weights_of.seen.items():
        decay = min(0.3, (1 + step) / (10 + step))
        average = {name: decay * value + (1 - decay) * seen[name] for name, value in average.items()}
    made = weights(cfg)
    for name, value in average.items():
        torch.testing.assert_close(made[f"network.{name}"], value, atol=1e-6, rtol=1e-5)
    assert not all(torch.equal(made[f"network.{name}"], weights_of.seen[4][name]) for name in average)


def test_early_stopping_ends_the_run_and_a_lost_evaluation_does_not_prolong_it(train_config):
    cfg = train_config(
        "training.max_steps=40", "training.validate_every=2", "optimizer.lr=0", "callbacks=early_stopping",
        "callbacks.early_stopping.patience=2",
    )  # fmt: skip
    metrics = train(cfg)
    assert metrics["train"]["steps"] == 6  # the first validation is the best, and two more are not better
    folder = RunFolder(run_dir(cfg))
    assert folder.status["state"] == "finished" and folder.status["step"] == 6
    assert metrics["validation"]["step"] == 6 and folder.validation_dice == metrics["validation"]["dice"]
    before = load_checkpoint(folder.checkpoints / "last.ckpt")
    (folder.path / "metrics.json").unlink()
    assert train(cfg)["train"]["steps"] == 6
    assert_same(load_checkpoint(folder.checkpoints / "last.ckpt")["state_dict"], before["state_dict"])


def test_early_stopping_without_a_validation_case_is_refused(train_config):
    with pytest.raises(BadInput, match="callbacks=early_stopping: this run has no validation case"):
        train(train_config(*SHORT, "callbacks=early_stopping", "fold=all"))


def test_callbacks_that_only_watch_are_no_part_of_a_run(train_config):
    plain_run, watched = train_config(*SHORT), train_config(*SHORT, "callbacks=lr_monitor")
    assert config_hash(plain_run) == config_hash(watched)
    assert config_hash(plain_run) != config_hash(train_config(*SHORT, "callbacks=early_stopping"))
    train(watched)
    assert [float(row["lr-Adam"]) for row in log(watched).values() if row.get("lr-Adam")] == pytest.approx(
        [1e-4] * 4, rel=1e-4
    )


@pytest.mark.parametrize("profiler", ["simple", pytest.param("pytorch", marks=pytest.mark.slow)])
def test_a_profile_lies_in_the_run_s_folder(train_config, profiler):
    cfg = train_config(*SHORT, f"trainer.profiler={profiler}")
    train(cfg)
    profiles = list((run_dir(cfg) / "profile").iterdir())
    assert profiles and all(path.stat().st_size for path in profiles)


@pytest.mark.slow
def test_accumulating_on_one_process_trains_as_several_processes_do(train_options, train_config, tmp_path):
    command = [sys.executable, "-m", "covidseg.cli.train", *train_options, *SHORT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for row, options in (
        ("two", ["trainer.devices=2", "trainer.strategy=ddp"]),
        ("one", ["trainer.accumulate_grad_batches=2"]),
    ):
        done = subprocess.run([*command, f"row={row}", *options], env=environment, timeout=240, capture_output=True)
        assert done.returncode == 0, done.stderr
    one, two = (weights(train_config(*SHORT, f"row={row}")) for row in ("one", "two"))
    for name, value in one.items():
        if "running" not in name and "num_batches" not in name:  # batch norm counts parts as batches
            torch.testing.assert_close(value, two[name], atol=1e-5, rtol=1e-3)
