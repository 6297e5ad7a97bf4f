import numpy as np
import pytest
import torch
from torch import nn

from covidseg.data.train.augment import Augment, Noise
from covidseg.evaluation.metrics import METRICS
from covidseg.evaluation.structures import Task
from covidseg.inference.window import WindowInferer
from covidseg.system.errors import BadInput
from covidseg.system.signals import StopRequest
from covidseg.training.losses import DiceCrossEntropy
from covidseg.training.module import SegmentationTask, validation_scores
from covidseg.training.parts import build_task, check
from covidseg.training.schedules import InverseTimeDecay, WarmupPolynomial


def make(network, augment=None, step=0, rank=0, seed=0, **options):
    task = Task.from_config({
        "name": "lesion", "out_channels": 2, "label_to_target": [0, 0, 1],
        "structures": {"lesion": {"channels": [1], "labels": [2], "tolerance_mm": 3}},
    })  # fmt: skip

    class At(SegmentationTask):
        global_step, global_rank = step, rank

    return At(
        network, DiceCrossEntropy(0.5, 0.5), torch.optim.Adam, InverseTimeDecay(1e-6), augment or Augment(), task,
        (-1000, 1000), WindowInferer([8, 8, 8], 0.0), seed, **options,
    )  # fmt: skip


def batch(step=0):
    rng = np.random.default_rng(0)
    image = torch.tensor(rng.integers(-1500, 1500, (2, 1, 8, 8, 8)), dtype=torch.int16)
    return {
        "image": image,
        "mask": torch.tensor(rng.integers(0, 3, image.shape), dtype=torch.uint8),
        "case": ["a", "b"],
        "step": step,
        "part": 0,
    }


class Seen(nn.Module):
    """Keeps its input, and answers with dropout of it in two channels."""

    def forward(self, image):
        self.image = image
        return torch.dropout(torch.cat([image, -image], dim=1), 0.5, train=True)


def test_the_network_sees_the_window_as_zero_to_one():
    network = Seen()
    make(network).training_step(batch(), 0)
    hu = batch()["image"].numpy().astype(float)
    np.testing.assert_allclose(network.image.numpy(), np.clip((hu + 1000) / 2000, 0, 1), atol=1e-6)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_network_sees_one_channel_in_the_layout_of_its_weights(channels_last):
    """By its strides, which are what torch goes by: with one channel a tensor is in both layouts."""
    network = Seen()
    make(network, channels_last=channels_last).training_step(batch(), 0)
    assert (network.image.stride(1) == 1) is channels_last


def test_the_loss_is_that_of_the_task_s_target():
    network = nn.Conv3d(1, 2, 1)
    task = make(network)
    loss = task.training_step(batch(), 0)["loss"]
    image = ((batch()["image"].float() + 1000) / 2000).clamp(0, 1)
    assert torch.allclose(loss, DiceCrossEntropy(0.5, 0.5)(network(image), (batch()["mask"][:, 0] == 2).long()))


@pytest.mark.parametrize("change", [{}, {"step": 1}, {"rank": 1}, {"seed": 1}])
def test_random_numbers_follow_from_seed_step_and_rank_alone(change):
    def outcome(**at):
        network = Seen()
        task = make(network, Augment(noise=Noise(1.0, [0.1, 0.1])), **at)
        torch.rand(int(torch.randint(9, (1,))))  # whatever was drawn before
        task.on_train_batch_start(batch(at.get("step", 0)), 0)
        return task.training_step(batch(), 0)["loss"], network.image

    reference, other = outcome(), outcome(**change)
    assert torch.equal(reference[0], other[0]) is not bool(change)
    assert torch.equal(reference[1], other[1]) is not bool(change)


def test_a_batch_of_another_step_is_a_bug():
    with pytest.raises(RuntimeError, match="batch of step 3 in step 0"):
        make(Seen()).on_train_batch_start(batch(3), 0)


def test_schedules_are_their_formulas():
    decay = InverseTimeDecay(1e-6)
    assert [decay(t) for t in (0, 1, 10**6)] == pytest.approx([1, 1 / 1.000001, 0.5])
    ramp = WarmupPolynomial(warmup=1 / 11, max_steps=44, power=0.9)
    assert [ramp(t) for t in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [ramp(t) for t in (4, 24, 44, 45)] == pytest.approx([1, 0.5**0.9, 0, 0])


@pytest.mark.parametrize("steps", [10, 500, 60000])
def test_a_warm_up_is_a_share_of_the_run(steps):
    """A number of steps was once longer than a short run: the rate only rose, in silence."""
    ramp = WarmupPolynomial(warmup=0.1, max_steps=steps, power=0.9)
    rates = [ramp(t) for t in range(steps + 1)]
    assert rates.index(max(rates)) == steps // 10 - 1 and rates[-1] == 0
    assert WarmupPolynomial(0.0, steps, 0.9)(0) == 1


def test_the_paper_s_recipe_is_the_paper_s(train_config):
    """Section IV-C, number by number."""
    cfg = train_config("recipe=paper", "training.patch_size_zyx=[64,128,128]")
    task = build_task(cfg, StopRequest())
    made = task.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert type(optimizer) is torch.optim.Adam
    expected = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1e-4 / (1 + 1e-6 * t) for t in range(3)], rel=1e-12)
    assert made["lr_scheduler"]["interval"] == "step"
    assert (task.loss.dice_weight, task.loss.ce_weight) == (0.5, 0.5)
    assert task.window == (-1250, 250) and not task.augment.transforms
    assert (cfg.training.batch_size, cfg.training.foreground_probability) == (2, 0.0)


def test_initial_weights_follow_from_the_seed(train_config):
    def weights(seed):
        return torch.cat([p.flatten() for p in build_task(train_config(f"seed={seed}"), StopRequest()).parameters()])

    assert torch.equal(weights(3), weights(3)) and not torch.equal(weights(3), weights(4))


def test_it_learns_a_patch_by_heart(train_config):
    cfg = train_config("model.width=4", "optimizer.lr=0.01")
    task = build_task(cfg, StopRequest())
    image = torch.zeros(2, 1, 16, 16, 16, dtype=torch.int16) - 800
    image[:, :, 4:12, 4:12, 4:12] = -300
    sample = {"image": image, "mask": (image > -500).byte() * 2, "part": 0}
    optimizer = task.optimizer(task.parameters())
    task.__class__ = type("At", (SegmentationTask,), {"global_step": 0, "global_rank": 0})
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = task.training_step(sample, 0)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.35 * losses[0]


def test_validation_scores_leave_undefined_means_out():
    undefined = dict.fromkeys(metric.column for metric in METRICS)
    row = {"set": "validation", "case": "a", "tp": 1, "fp": 0, "fn": 1, **undefined}
    row |= {"dice": 0.5, "sensitivity": 0.5, "precision": 1.0}
    empty = {**row, "case": "b", "tp": 0, "fn": 0} | undefined
    scores = validation_scores([{**row, "structure": "lesion"}, {**empty, "structure": "lung"}])
    assert scores == {
        "val/lesion/dice": 0.5, "val/lesion/sensitivity": 0.5, "val/lesion/precision": 1.0, "val/dice": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.batch_size=0", r"training\.batch_size=0: must be at least 1"),
        ("training.validate_every=9", "the run would never be validated"),
        ("resume=maybe", "auto, require, never"),
        ("training.evaluate=both", "last, best"),
        ("seed=-1", "seed=-1: is no seed"),
        ("seed=two", "seed=two: is no seed"),
        ("seed=99999999999999999999", "is no seed"),
        ("data.window=[250,-1250]", r"data\.window=\[250, -1250\]: is no range of HU"),
        ("data.window=[1,2,3]", r"data\.window=\[1, 2, 3\]: is no range of HU"),
        ("training.gradient_clip=-1", r"training\.gradient_clip=-1: is no norm"),
        ("logger.backend=wadb", "csv, wandb"),
        ("trainer.progress=maybe", r"trainer\.progress=maybe"),
        ("fold=1.5", r"fold=1\.5: is no fold"),
        ("training.max_steps=8.5", r"training\.max_steps=8\.5: is of the wrong kind"),
        ("training.compile=3", r"training\.compile=3"),
        ("training.gradient_clip=high", r"training\.gradient_clip=high"),
        ("training.patch_size_zyx=[8,8]", r"patch_size_zyx=\[8, 8\]: is of the wrong kind -> the paper's is \[64, 128"),
    ],
)
def test_values_that_do_not_fit_are_refused(train_config, override, message):
    with pytest.raises(BadInput, match=message):
        check(train_config(override))
