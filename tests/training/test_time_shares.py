"""The parts of a training's time, of a training that sleeps in each of them."""

import time

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader, Dataset

from covidseg.training.time_shares import TimeShares

STEPS = 4


class Slow(Dataset):
    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        time.sleep(0.05)
        return torch.zeros(1)


class Sleeper(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        time.sleep(0.1)
        return (self.weight * batch).sum()

    def validation_step(self, batch, index):
        time.sleep(0.15)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Saving(Callback):
    def on_save_checkpoint(self, trainer, module, checkpoint):
        time.sleep(0.2)

    def on_train_batch_start(self, trainer, module, batch, index):
        if index == 1:
            trainer.save_checkpoint(trainer.default_root_dir + "/last.ckpt")


def fit(folder, times, **options):
    trainer = pl.Trainer(
        max_steps=STEPS,
        callbacks=[times, Saving()],
        profiler=times.watch,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        accelerator="cpu",
        check_val_every_n_epoch=1,
        **options,
    )
    trainer.fit(Sleeper(), DataLoader(Slow()), DataLoader(Slow()), weights_only=False)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_each_part_is_counted_where_it_happens(tmp_path):
    times = TimeShares()
    began = time.perf_counter()
    fit(tmp_path, times)
    whole = time.perf_counter() - began
    time.sleep(1)  # of an evaluation, which is no training
    times.evaluated(3.0)
    found = times.seconds
    assert 0.2 <= found["loader"] < 0.35  # four batches; those of the validation are the validation's
    assert 0.4 <= found["step"] < 0.6
    assert 0.8 <= found["validation"] < 1.0  # four batches of 0.05 to load and 0.15 to look at
    assert 0.2 <= found["checkpoint"] < 0.35
    assert found["evaluating"] == 3.0 and found["starting"] > 0
    training = sum(found[part] for part in ("loader", "copy", "step", "validation", "checkpoint"))
    assert training == pytest.approx(whole, abs=0.3)


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_adds_to_what_it_took_before(tmp_path):
    before = TimeShares()
    fit(tmp_path, before)
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]["TimeShares"]
    again = TimeShares()
    again.load_state_dict(state)
    assert again.seconds == state["seconds"] and state["seconds"]["loader"] > 0.05
