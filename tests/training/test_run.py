"""Whole runs of seconds, in this process."""

import csv
import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from covidseg import tracking
from covidseg.data.store import PreparedDataset
from covidseg.data.train.datamodule import CTDataModule
from covidseg.evaluation.calibration import Reliability
from covidseg.evaluation.cases import evaluate_cases
from covidseg.inference.segmenter import load
from covidseg.runs.checkpoints import load_checkpoint
from covidseg.runs.folder import RunFolder, run_dir
from covidseg.system.errors import BadInput, EnvironmentFault, Interrupted
from covidseg.training import module
from covidseg.training import run as training
from covidseg.training.losses import DiceCrossEntropy
from covidseg.training.run import train


@pytest.fixture
def with_callback(monkeypatch):
    """`with_callback(callback)` puts it into the next Trainer."""
    original = tracking.callbacks

    def put(callback):
        monkeypatch.setattr(tracking, "callbacks", lambda cfg: [*original(cfg), callback])

    return put


def test_a_run_leaves_its_folder_and_then_does_nothing(train_config, capsys):
    cfg = train_config("model=covidsegnet", "model.width=4", "task=joint", "augment=strong")
    metrics = train(cfg)
    folder = RunFolder(run_dir(cfg))
    written = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    assert written >= {
        "config.yaml", "manifest.json", "status.json", "metrics.csv", "cases.csv", "metrics.json",
        "checkpoints/last.ckpt", "checkpoints/best.ckpt",
    }  # fmt: skip
    assert not [name for name in written if ".tmp-" in name]
    assert json.loads((folder.path / "metrics.json").read_text()) == metrics
    assert set(metrics["sets"]) == {"test", "external"} and set(metrics["sets"]["test"]) == {"lesion", "lung"}
    assert metrics["train"]["steps"] == 8 and metrics["train"]["patches_per_second"] > 0
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert (
        manifest["parameters"]
        == metrics["parameters"]
        == sum(p.numel() for p in load(folder.path).network.parameters())
    )
    assert manifest["data"]["hash"] == "0123456789ab" and manifest["cases"]["train"] == 4
    assert len(manifest["attempts"]) == 1 and manifest["attempts"][0]["effective_batch_size"] == 2
    status = folder.status
    assert (status["state"], status["step"], status["max_steps"]) == ("finished", 8, 8)
    capsys.readouterr()

    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.name != ".lock"}
    other_way = ["model=covidsegnet", "model.width=4", "task=joint", "augment=strong", "trainer.deterministic=true"]
    assert train(train_config(*other_way)) is None  # config.yaml goes on to say how it was made
    assert "finished: nothing to do" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_the_table_is_what_evaluating_the_run_gives(train_config, prepared):
    cfg = train_config("optimizer.lr=0.02", "training.max_steps=16", "training.evaluate=best")
    metrics = train(cfg)
    folder = RunFolder(run_dir(cfg))
    segmenter, dataset = load(folder.path), PreparedDataset.open(prepared)
    rows = evaluate_cases(segmenter.segment_prepared, {"test": [dataset.cases["c6"]]}, segmenter.task)
    assert rows[0]["dice"] == metrics["sets"]["test"]["lesion"]["dice"]["mean"]
    assert load_checkpoint(folder.checkpoints / "best.ckpt").keys().isdisjoint({"optimizer_states"})


def test_a_run_keeps_what_the_probabilities_of_its_shown_cases_came_to(train_config, prepared):
    """By the softmax of logits computed here, of each shown case and structure."""
    cfg = train_config("training.max_steps=8", "task=joint")
    train(cfg)
    folder = RunFolder(run_dir(cfg))
    kept = sorted(path.name for path in (folder.path / "calibration").iterdir())
    shown = {path.stem for path in (folder.path / "slices").iterdir()}
    assert kept and {name.removesuffix(".json") for name in kept} <= shown
    segmenter, dataset = load(folder.path), PreparedDataset.open(prepared)
    for name in kept:
        case_id, structure = name.removesuffix(".json").split("_")
        case, logits = dataset.cases[case_id], []
        segmenter.segment_prepared(case, logits.append)
        wanted = segmenter.task.structures[structure]
        probability = torch.softmax(logits[0], 0)[list(wanted.channels)].sum(0).numpy()
        assert probability.shape == case.mask.shape
        expected = Reliability.of(probability, np.isin(case.mask, wanted.labels), case.grid.spacing_zyx)
        assert Reliability.load(folder.path / "calibration" / name) == expected


def test_curves_hold_the_learning_rate_of_their_step(train_config):
    cfg = train_config("optimizer.lr=0.5", "optimizer.schedule.rate=1", "training.log_every=1")
    train(cfg)
    with open(run_dir(cfg) / "metrics.csv", newline="") as stream:
        rates = {int(row["step"]): float(row["train/lr"]) for row in csv.DictReader(stream)}
    assert rates == pytest.approx({step: 0.5 / step for step in range(1, 9)})  # the first step is t = 0


class Norms(pl.Callback):
    """The gradient's norm of each step, by hand."""

    def __init__(self):
        self.found = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        squares = [float(one.grad.double().square().sum()) for one in pl_module.parameters() if one.grad is not None]
        self.found[trainer.global_step + 1] = sum(squares) ** 0.5


@pytest.mark.parametrize("accumulated", [1, 2])
def test_curves_hold_the_parts_of_the_loss_the_gradient_and_the_validation_loss(
    train_config, prepared, with_callback, monkeypatch, accumulated
):
    monkeypatch.setattr(module, "_SLAB", 10)  # of cases of 24 and 25 slices
    options = ["training.log_every=2", "training.validate_every=8", "training.evaluate=last"]
    cfg = train_config(*options, f"trainer.accumulate_grad_batches={accumulated}")
    norms = Norms()
    with_callback(norms)
    train(cfg)
    with open(run_dir(cfg) / "metrics.csv", newline="") as stream:
        rows = {int(row["step"]): row for row in csv.DictReader(stream)}
    assert list(rows) == [2, 4, 6, 8]
    for step, row in rows.items():
        parts = float(row["train/soft_dice_loss"]), float(row["train/cross_entropy"])
        assert float(row["train/loss"]) == pytest.approx(sum(parts) / 2, rel=1e-5)
        assert float(row["train/gradient_norm"]) == pytest.approx(norms.found[step], rel=1e-4)
    segmenter, dataset = load(run_dir(cfg)), PreparedDataset.open(prepared)
    losses, loss = [], DiceCrossEntropy(0.5, 0.5)
    for case in (dataset.cases["c4"], dataset.cases["c5"]):
        logits = []
        segmenter.segment_prepared(case, logits.append)
        slabs = logits[0][None].split(10, dim=2)
        targets = torch.from_numpy((case.mask == 2).astype(np.int64))[None].split(10, dim=1)
        sizes = [slab.shape[2] for slab in slabs]
        found = [float(loss(slab, target)) for slab, target in zip(slabs, targets, strict=True)]
        losses.append(np.average(found, weights=sizes))
    assert float(rows[8]["val/loss"]) == pytest.approx(np.mean(losses), rel=1e-4)


def test_another_configuration_and_other_data_are_refused(train_config, monkeypatch):
    cfg = train_config("training.max_steps=8")
    (RunFolder(run_dir(cfg)).path).mkdir(parents=True)
    train(cfg)
    with pytest.raises(BadInput, match=r"optimizer\.lr is 0\.0001 there, 0\.1 here"):
        train(train_config("optimizer.lr=0.1"))

    (run_dir(cfg) / "metrics.json").unlink()
    original = training._open_data
    monkeypatch.setattr(training, "_open_data", lambda cfg: dataclasses.replace(original(cfg), hash="ffffffffffff"))
    with pytest.raises(BadInput, match="started with data 0123456789ab, now they are ffffffffffff"):
        train(cfg)


def test_a_choice_among_checkpoints_needs_something_to_be_found(train_config, monkeypatch, capsys):
    """A run whose best checkpoint nobody could tell would train to its end and then have nothing to score."""
    monkeypatch.setattr(CTDataModule, "can_choose", False)
    with pytest.raises(BadInput, match=r"training\.evaluate=best: no validation case of small has a lesion"):
        train(train_config("training.evaluate=best"))
    assert train(train_config("training.evaluate=last"))["sets"]["test"]


def test_results_are_there_before_the_run_is_called_finished(train_config, monkeypatch):
    """Killed in between, a run is unfinished by its status and by its results alike."""
    cfg, states, original = train_config(), [], training.write_results

    def seen(*arguments):
        states.append(RunFolder(run_dir(cfg)).status["state"])
        return original(*arguments)

    monkeypatch.setattr(training, "write_results", seen)
    train(cfg)
    assert states == ["running"] and RunFolder(run_dir(cfg)).status["state"] == "finished"


def test_a_run_of_everything_says_that_no_score_will_be(train_config, capsys):
    metrics = train(train_config("fold=all"))
    assert metrics["sets"] == {} and "no score was asked for" in metrics["not_scored"]
    out = capsys.readouterr().out
    assert "trained on all 8 annotated of 8 cases" in out and "2 validation, 1 test, 1 external" in out
    assert "trained, not scored" in out


def test_resume_says_what_it_does_and_refuses_what_it_cannot(train_config, capsys):
    with pytest.raises(BadInput, match="no checkpoint to resume from"):
        train(train_config("resume=require"))
    cfg = train_config()
    assert RunFolder(run_dir(cfg)).status["state"] == "failed"
    train(cfg)
    (run_dir(cfg) / "metrics.json").unlink()
    with pytest.raises(BadInput, match="holds a run at step 8"):
        train(train_config("resume=never"))
    capsys.readouterr()
    train(train_config("resume=require"))
    assert "resuming from last.ckpt at step 8" in capsys.readouterr().out

    (run_dir(cfg) / "metrics.json").unlink()
    last = run_dir(cfg) / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    train(cfg)
    said = capsys.readouterr().out
    assert "last.ckpt: is truncated" in said and "resuming from previous.ckpt at step 7" in said


def test_a_checkpoint_of_another_network_is_refused_with_the_keys(train_config):
    cfg = train_config()
    train(cfg)
    (run_dir(cfg) / "metrics.json").unlink()
    other = train_config("model.width=4", "row=other")
    train(other)
    (run_dir(cfg) / "checkpoints/last.ckpt").write_bytes((run_dir(other) / "checkpoints/last.ckpt").read_bytes())
    with pytest.raises(BadInput, match=r"last\.ckpt: does not fit the network: network\."):
        train(cfg)


class Spoil(pl.Callback):
    """From `step` on the loss is NaN."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            pl_module.loss.register_forward_hook(lambda module, inputs, output: output * float("nan"))


@pytest.mark.parametrize("step", [2, 7])
def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_of_it_is_saved(train_config, with_callback, step):
    cfg = train_config("training.checkpoint_every=1")
    with_callback(Spoil(step))
    with pytest.raises(BadInput, match=rf"not finite after step {step + 1} \(cases c\d"):
        train(cfg)
    folder = RunFolder(run_dir(cfg))
    assert folder.status["state"] == "failed" and "not finite" in folder.status["reason"]
    assert (
        load_checkpoint(folder.checkpoints / "last.ckpt")["global_step"] == step
    )  # loading refuses what is not finite
    assert not folder.is_finished


class Exhaust(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.empty(2**50)


def test_memory_that_runs_out_is_the_environment_s_fault(train_config, with_callback):
    with_callback(Exhaust())
    expected = r"memory: exhausted by 2 patches of 16 x 16 x 16 a process.*checkpoint_activations"
    with pytest.raises(EnvironmentFault, match=expected):
        train(train_config())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=0"], r"trainer\.devices=0: is no device to train on -> use 1"),
        (["trainer.accumulate_grad_batches=0"], r"accumulate_grad_batches=0: must be at least 1"),
        (["trainer.accumulate_grad_batches=1.5"], r"accumulate_grad_batches=1\.5: must be"),
        (["trainer.strategy=fsdp"], r"trainer\.strategy=fsdp: there is no such choice -> one of auto, ddp"),
        (["trainer.profiler=fast"], r"trainer\.profiler=fast: there is no such choice -> one of null, simple"),
        (["callbacks=early_stopping", "callbacks.early_stopping.patience=0"], "patience=0"),
        (["callbacks=weight_averaging", "callbacks.weight_averaging.decay=1"], "decay=1 is not between"),
        (["trainer.precision=13"], "trainer: "),
        (["training.patch_size_zyx=[15,16,17]"], r"stride \(8, 8, 8\) -> use \[16,16,24\]"),
        (["inference.roi_zyx=[16,16,20]"], r"inference\.roi_zyx=\[16, 16, 20\]"),
        (["trainer.devices=[0,1]"], "trainer: "),
        (["trainer.accelerator=tpu"], "trainer: "),
        (["inference.overlap=1.5"], "inference: overlap 1.5"),
        (["inference.overlap=wide"], "inference: "),
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate"),
        (["optimizer.betas=[2,0.9]"], "optimizer: Invalid beta"),
        (["optimizer.schedule.rate=fast"], r"optimizer\.schedule: "),
        (["optimizer.schedule.rate=-1"], r"optimizer\.schedule: "),
        (["optimizer=adamw", "optimizer.schedule.warmup=-3"], "warmup=-3 is no share of the run"),
        (["optimizer=adamw", "optimizer.schedule.warmup=20"], "warmup=20 is no share of the run"),
        (["loss.head_decay=0"], "head_decay=0 is not in"),
        (["training.score_on=test"], r"training\.score_on=test: there is no such choice"),
        (
            ["training.score_on=validation", "training.evaluate=best"],
            "score a checkpoint on the cases it was chosen by",
        ),
        (["training.score_on=validation", "fold=all"], "fold=all keeps no case to score on"),
        (["loss.dice_weight=much"], "loss: "),
        (["loss.dice_weight=inf"], "loss: is "),
        (["augment=strong", "augment.mirror.axes=[5]"], r"augment\.mirror: "),
        (["augment=strong", "augment.noise.sd=3"], "augment: "),
        (["augment=strong", "augment.noise.probability=2"], "probability=2 is not in"),
        (["task=joint", "task.out_channels=1"], r"task\.label_to_target: \[0, 1, 2\] does not give"),
        (["task=joint", "model.out_channels=2"], r"model\.out_channels=2: is not what task joint needs"),
        (["task.label_to_target=[0,1]"], r"task\.label_to_target: \[0, 1\]"),
        (["task.structures.lesion.channels=[2]"], r"task\.structures\.lesion\.channels: \[2\] are not among"),
    ],
)
def test_values_that_no_part_can_use_are_refused_before_the_first_step(train_config, overrides, message):
    cfg = train_config(*overrides)
    with pytest.raises(BadInput, match=message):
        train(cfg)
    assert not (run_dir(cfg) / "metrics.csv").exists()


def test_a_fold_without_held_out_cases_is_scored_on_its_validation_cases(train_config, monkeypatch):
    original = training._open_data

    def open_without_test(cfg):
        dataset = original(cfg)
        split = {**dataset.splits["fixed"], "test": [], "external": []}
        return dataclasses.replace(dataset, splits={"fixed": split, "folds": [split]})

    monkeypatch.setattr(training, "_open_data", open_without_test)
    assert set(train(train_config())["sets"]) == {"validation"}


def test_a_signal_while_evaluating_keeps_the_training_and_evaluates_again(train_config, monkeypatch, capsys):
    original = training.load

    def load_and_signal(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    cfg = train_config()
    monkeypatch.setattr(training, "load", load_and_signal)
    with pytest.raises(Interrupted, match="while evaluating") as caught:
        train(cfg)
    assert caught.value.exit_code == 143 and RunFolder(run_dir(cfg)).status["state"] == "interrupted"
    monkeypatch.setattr(training, "load", original)
    capsys.readouterr()
    metrics = train(cfg)
    said = capsys.readouterr().out
    assert "at step 8" in said and "loss" not in said
    assert metrics["train"]["patches_per_second"] > 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # given back


@pytest.mark.parametrize("option", ["channels_last", pytest.param("compile", marks=pytest.mark.slow)])
def test_faster_networks_learn_the_same_and_save_the_same_names(train_config, option):
    short = ["training.max_steps=3", "training.validate_every=3", "training.log_every=1"]
    curves, names = [], []
    for row in ("plain", f"training.{option}=true"):
        cfg = train_config(*short, f"row={row.partition('=')[0]}", *([row] if "=" in row else []))
        train(cfg)
        with open(run_dir(cfg) / "metrics.csv", newline="") as stream:
            curves.append([float(line["train/loss"]) for line in csv.DictReader(stream)])
        names.append(list(load_checkpoint(run_dir(cfg) / "checkpoints/last.ckpt")["state_dict"]))
    assert curves[1] == pytest.approx(curves[0], rel=1e-3) and len(curves[0]) == 3
    assert names[0] == names[1]
