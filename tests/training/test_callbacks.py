import types

import pytest
import torch

from covidseg.runs.folder import RunFolder
from covidseg.system.errors import Interrupted
from covidseg.system.signals import StopRequest
from covidseg.training import progress
from covidseg.training.callbacks import SaveAndStop
from covidseg.training.progress import EvaluationReport, ProgressReporter
from covidseg.training.time_shares import TimeShares


class FakeTrainer(types.SimpleNamespace):
    """What `SaveAndStop` sees of a Trainer; keeps (file name, step) of each save."""

    def save_checkpoint(self, path, weights_only):
        self.saved.append((path.name, self.global_step))


@pytest.fixture
def trainer():
    strategy = types.SimpleNamespace(root_device=torch.device("cpu"))
    return FakeTrainer(is_global_zero=True, saved=[], global_step=0, callback_metrics={}, strategy=strategy)


def boundary(tmp_path, stop=None, checkpoint_every=4, validate_every=10):
    return SaveAndStop(tmp_path, checkpoint_every, validate_every, stop or StopRequest())


BATCH = {"part": 0}
MODULE = types.SimpleNamespace(device=torch.device("cpu"))


def test_best_is_the_highest_validation_dice_and_survives_a_resume(trainer, tmp_path):
    first, second = boundary(tmp_path), boundary(tmp_path)
    for step, dice in ((10, 0.2), (20, 0.5), (30, 0.5), (40, 0.4)):
        trainer.global_step, trainer.callback_metrics = step, {"val/dice": torch.tensor(dice)}
        first.on_validation_end(trainer, MODULE)
    assert trainer.saved == [("best.ckpt", 10), ("best.ckpt", 20)]
    second.load_state_dict(first.state_dict())
    assert second.best_step == 20
    trainer.callback_metrics = {"val/dice": torch.tensor(0.45)}
    second.on_validation_end(trainer, MODULE)
    trainer.callback_metrics = {}  # nothing to be scored
    second.on_validation_end(trainer, MODULE)
    assert len(trainer.saved) == 2


def test_last_is_written_at_its_interval_around_validations_and_at_the_end(trainer, tmp_path):
    keeper = boundary(tmp_path)
    for trainer.global_step in range(23):
        keeper.on_train_batch_start(trainer, MODULE, BATCH, 0)
    trainer.global_step = 23
    keeper.on_train_end(trainer, MODULE)
    assert [step for _, step in trainer.saved] == [4, 8, 9, 10, 12, 16, 19, 20, 23]


@pytest.mark.parametrize(("seconds", "kept"), [(0.1, [4, 8, 12, 16]), (0.6, [4, 16]), (2.0, [4])])
def test_checkpoints_that_take_long_are_written_less_often(trainer, tmp_path, monkeypatch, seconds, kept):
    """A step of 6 seconds: a checkpoint of 0.6 s is a hundredth of ten steps, one of 2 s of more than thirty."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr("covidseg.training.callbacks.time", types.SimpleNamespace(monotonic=lambda: clock.now))
    write = FakeTrainer.save_checkpoint

    def slow(self, path, weights_only):
        clock.now += seconds
        write(self, path, weights_only)

    monkeypatch.setattr(FakeTrainer, "save_checkpoint", slow)
    keeper = boundary(tmp_path, validate_every=1000)
    for trainer.global_step in range(1, 17):
        clock.now += 6
        keeper.on_train_batch_start(trainer, MODULE, BATCH, 0)
    assert [step for _, step in trainer.saved] == kept
    trainer.global_step = 17
    keeper.on_train_end(trainer, MODULE)
    assert trainer.saved[-1] == ("last.ckpt", 17)  # the end is always kept


def test_a_signal_saves_at_the_next_boundary_and_nothing_in_a_validation(trainer, tmp_path):
    stop = StopRequest()
    keeper = boundary(tmp_path, stop)
    stop.signum = 15
    trainer.global_step = 7
    with pytest.raises(Interrupted, match="signal 15 at step 7"):
        keeper.on_train_batch_start(trainer, MODULE, BATCH, 0)
    assert trainer.saved == [("last.ckpt", 7)]
    trainer.callback_metrics = {"val/dice": torch.tensor(0.9)}
    with pytest.raises(Interrupted, match="in the validation of step 7"):
        keeper.on_validation_end(trainer, MODULE)
    assert keeper.best is None and len(trainer.saved) == 1


def test_a_signal_before_the_first_step_leaves_nothing_to_resume(trainer, tmp_path):
    stop = StopRequest()
    stop.signum = 2
    with pytest.raises(Interrupted):
        boundary(tmp_path, stop).on_train_batch_start(trainer, MODULE, BATCH, 0)
    assert trainer.saved == []


def test_losses_of_a_checkpoint_join_those_of_the_device(tmp_path):
    """A device other than the CPU, whose tensors cannot be stacked with the CPU's, is stood for by `meta`."""
    reporter = ProgressReporter(
        RunFolder(tmp_path), max_steps=9, batch_size=2, log_every=4, show=False, times=TimeShares()
    )
    reporter.load_state_dict({"seconds": 1.0, "patches": 2, "window": [0.0, 0], "losses": [0.5, 0.25]})
    assert reporter.state_dict()["collected"] == {"loss": [0.5, 0.25]}, "of a checkpoint of before there were parts"
    state = reporter.state_dict() | {"collected": {"loss": [0.5, 0.25], "cross_entropy": [0.125, 0.25]}}
    reporter.load_state_dict(state)
    assert reporter.state_dict() == state
    reporter.on_train_start(
        types.SimpleNamespace(is_global_zero=True, global_step=2), types.SimpleNamespace(device=torch.device("meta"))
    )
    assert {value.device.type for values in reporter._collected.values() for value in values} == {"meta"}


@pytest.mark.parametrize(("processes", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5])])
def test_an_evaluation_says_how_far_it_is(tmp_path, monkeypatch, capsys, processes, expected):
    """Of two processes the first one scores every other case; the last line stands whatever the clock says."""
    now = iter(range(0, 1000, 40))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    folder, seen, told = RunFolder(tmp_path), [], []
    report = EvaluationReport(folder, 5, True, seen.append, processes)
    for case in range(-(-5 // processes)):
        report(f"c{case}")
        told.append(folder.status["evaluated"])
    assert told == [[done, 5] for done in expected] and len(seen) == len(expected)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"evaluating: {done} of 5 cases" for done in expected]
