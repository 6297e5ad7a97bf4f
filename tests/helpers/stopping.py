"""Runs that are stopped, and whether they end like those that are not."""

import os
import signal

import pytorch_lightning as pl
import torch


class Kill(pl.Callback):
    """Sends this process a signal when `step` steps are done, or while the validation after them runs."""

    def __init__(self, step, signum=signal.SIGTERM, in_validation=False):
        self.step, self.signum, self.in_validation = step, signum, in_validation

    def __str__(self):
        return f"{self.signum.name}-{self.step}" + ("-in-validation" if self.in_validation else "")

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not self.in_validation:
            os.kill(os.getpid(), self.signum)

    def on_validation_start(self, trainer, *_):
        if trainer.global_step == self.step and self.in_validation:
            os.kill(os.getpid(), self.signum)


def assert_same(one, other, where="checkpoint"):
    """Equal bit by bit, tensors included, at every depth."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where
