"""A training step does not make the host wait for its device.

The device is `meta`, which has no values: whatever asks for one raises. What is sent to it is recorded.
"""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from covidseg.config.paths import CONF
from covidseg.config.plain import load_yaml
from covidseg.data.train import augment as transforms
from covidseg.evaluation import structures
from covidseg.system.errors import Interrupted
from covidseg.system.signals import StopRequest
from covidseg.training.callbacks import SaveAndStop
from covidseg.training.module import SegmentationTask
from covidseg.training.parts import build_task

NETWORKS = [file.stem for file in sorted((CONF / "model").glob("*.yaml")) if "covidseg." in load_yaml(file)["_target_"]]


class Sent(TorchDispatchMode):
    """Notes copies from the CPU to `meta` that block, and those that do not."""

    def __init__(self):
        super().__init__()
        self.blocking, self.free = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(function)
        if name.startswith(("aten._to_copy", "aten.copy_")):
            tensors = [part for part in args if isinstance(part, torch.Tensor)]
            devices = {str(part.device) for part in tensors} | {str(kwargs.get("device", tensors[0].device))}
            if devices == {"cpu", "meta"} and not (kwargs.get("non_blocking") or any(part is True for part in args)):
                self.blocking.append((name, [tuple(part.shape) for part in tensors]))
            self.free += devices == {"cpu", "meta"}
        return function(*args, **kwargs)


@pytest.fixture
def on_meta(monkeypatch):
    """Noise from no generator: `meta` has none; and no table is sent a second time."""
    monkeypatch.setattr(transforms, "Generator", lambda device=None: torch.Generator())
    monkeypatch.setattr(transforms.torch, "randn", lambda shape, generator, device: torch.empty(shape, device=device))
    structures._table.cache_clear()
    yield
    structures._table.cache_clear()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_step_of_each_network_sends_a_few_numbers_and_waits_for_nothing(train_config, monkeypatch, on_meta, name):
    sizes = ("model.width=24", "training.patch_size_zyx=[64,64,64]", "inference.roi_zyx=[64,64,64]")
    cfg = train_config(f"model={name}", "augment=strong", *sizes)
    task = build_task(cfg, StopRequest()).to("meta")
    for part in task.augment.transforms.values():
        part.probability = 1.0
    for place in ("global_step", "global_rank"):  # which a Trainer would tell
        monkeypatch.setattr(SegmentationTask, place, 0)
    size = (2, 1, *cfg.training.patch_size_zyx)
    image = torch.empty(size, dtype=torch.int16, device="meta")
    batch = {"image": image, "mask": image.to(torch.uint8), "case": ["a", "b"], "step": 0, "part": 0}
    optimizer = task.optimizer(task.network.parameters())
    task.training_step(batch, 0)  # sends the table of classes
    with pytest.MonkeyPatch.context() as patch, Sent() as sent:
        patch.setattr(structures, "_table", _only_known(structures._table))
        loss = task.training_step(batch, 0)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.network.parameters(), 1.0)
        optimizer.step()
    assert sent.blocking == [] and sent.free > 5, sent.blocking


def _only_known(table):
    def known(*arguments):
        misses = table.cache_info().misses
        found = table(*arguments)
        assert table.cache_info().misses == misses, "the table was sent again"
        return found

    return known


def test_the_recorder_tells_a_copy_that_waits():
    with Sent() as sent:
        torch.zeros(3).to("meta", non_blocking=True)
        assert sent.blocking == []
        torch.zeros(3).to("meta")
        assert len(sent.blocking) == 1
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(3, device="meta").sum().item()


class Later:
    """A loss on a device: asking for its value before the next step began would make the host wait."""

    def __init__(self, value, cases):
        self.is_there, self._value, self.cases = False, value, cases

    def value(self):
        assert self.is_there, "the newest loss was waited for"
        return self._value


def test_of_a_device_s_losses_the_newest_is_not_asked_for(monkeypatch, tmp_path):
    from types import SimpleNamespace

    made = []
    monkeypatch.setattr(
        "covidseg.training.callbacks._Loss", lambda loss, cases: made.append(Later(loss, cases)) or made[-1]
    )
    stop = StopRequest()
    saver = SaveAndStop(Path(tmp_path), 100, 100, stop)
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    trainer = SimpleNamespace(global_step=0, strategy=strategy, saved=[], save_checkpoint=lambda *_, **__: None)
    for step in range(1, 8):
        trainer.global_step = step
        saver.on_train_batch_start(trainer, None, {"part": 0}, step)
        for loss in made:  # what the last step computed is there once the next one was queued
            loss.is_there = True
        saver.on_train_batch_end(trainer, None, {"loss": 0.5}, {"case": ["a"]}, step)
    stop.signum = 15
    for loss in made:
        loss.is_there = True
    with pytest.raises(Interrupted):
        saver.on_train_batch_start(trainer, None, {"part": 0}, 8)
