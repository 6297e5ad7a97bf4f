import functools
import math

import pytest
import torch
from monai.losses import DiceCELoss
from omegaconf import OmegaConf

from covidseg.config.build import instantiate
from covidseg.config.paths import CONF
from covidseg.training.losses import DiceCrossEntropy


@pytest.fixture
def paper():
    return DiceCrossEntropy(dice_weight=0.5, ce_weight=0.5)


def _random(channels, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, channels, 3, 4, 5, generator=generator, dtype=dtype)
    return logits, torch.randint(0, max(channels, 2), (2, 3, 4, 5), generator=generator)


def test_formula_by_hand(paper):
    """Two voxels, foreground probabilities 0.8 and 0.4, the first one is foreground."""
    logits = torch.tensor([[0.0, 0.0], [math.log(4), math.log(2 / 3)]]).reshape(1, 2, 1, 1, 2)
    dice = 2 * 0.8 / (0.8 + 0.4 + 1)
    cross_entropy = -(math.log(0.8) + math.log(0.6)) / 2
    loss = paper(logits, torch.tensor([1, 0]).reshape(1, 1, 1, 2))
    assert loss.item() == pytest.approx(0.5 * (1 - dice) + 0.5 * cross_entropy, abs=1e-5)


@pytest.mark.parametrize("heads", [1, 3])
def test_the_parts_of_the_loss_are_told_apart_and_make_it_up(heads):
    loss = DiceCrossEntropy(0.3, 0.7, head_decay=0.5)
    logits, target = zip(*(_random(3, seed) for seed in range(heads)), strict=True)
    whole = loss(logits[0] if heads == 1 else logits, target[0])
    dice = [DiceCrossEntropy(1, 0)(head, target[0]).item() for head in logits]
    entropy = [torch.nn.functional.cross_entropy(head, target[0]).item() for head in logits]
    weights = [0.5**level for level in range(heads)]
    expected = {
        "soft_dice_loss": sum(w * v for w, v in zip(weights, dice, strict=True)) / sum(weights),
        "cross_entropy": sum(w * v for w, v in zip(weights, entropy, strict=True)) / sum(weights),
    }
    assert {name: float(value) for name, value in loss.parts.items()} == pytest.approx(expected, rel=1e-5)
    assert not any(value.requires_grad for value in loss.parts.values())
    made_up = 0.3 * expected["soft_dice_loss"] + 0.7 * expected["cross_entropy"]
    assert whole.item() == pytest.approx(made_up, rel=1e-5)


def test_dice_is_per_sample_not_pooled():
    """One sample all right (Dice 1), one all wrong (Dice 0): the mean is 0.5, whatever their sizes."""
    target = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    target[0, :3], target[1, 0, 0, 0] = 1, 1
    truth = torch.stack([target[0], 1 - target[1]])
    logits = 50.0 * torch.stack([1 - truth, truth], dim=1).float()
    loss = DiceCrossEntropy(1, 0)(logits, target)
    assert loss.item() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("channels", [2, 3])
def test_equals_monai(paper, channels):
    """Part by part: told to leave the background out of Dice, MONAI leaves it out of its cross-entropy too."""
    logits, target = _random(channels)
    part = functools.partial(DiceCELoss, to_onehot_y=True, softmax=True)
    dice = part(include_background=False, lambda_dice=0.5, lambda_ce=0.0)
    cross_entropy = part(include_background=True, lambda_dice=0.0, lambda_ce=0.5)
    expected = dice(logits, target.unsqueeze(1)) + cross_entropy(logits, target.unsqueeze(1))
    assert paper(logits, target).item() == pytest.approx(expected.item(), abs=1e-6)


def test_one_channel_is_two_channels_with_a_zero_background(paper):
    """Reading 1: softmax over (0, d) is the sigmoid of d."""
    logits, target = _random(1)
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    assert paper(logits, target).item() == pytest.approx(paper(two, target).item(), abs=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_gradients(paper, channels):
    logits, target = _random(channels, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: paper(x, target), logits.requires_grad_())


def test_deep_supervision_is_the_mean_of_the_heads(paper):
    (a, target), (b, _) = _random(2), _random(2, seed=1)
    assert paper([a, b], target).item() == pytest.approx((paper(a, target) + paper(b, target)).item() / 2, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("magnitude", [0.0, 1e4])
def test_empty_target_and_extreme_logits_stay_finite(paper, channels, magnitude):
    logits = (magnitude * torch.ones(1, channels, 2, 2, 2)).requires_grad_()
    loss = paper(logits, torch.zeros(1, 2, 2, 2, dtype=torch.long))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_float32_from_half_precision_logits(paper):
    """2^20 voxels at probability 0.5: a bfloat16 or float16 sum would be far off, or infinite."""
    logits = torch.zeros(1, 2, 64, 128, 128, dtype=torch.bfloat16)
    target = torch.zeros(1, 64, 128, 128, dtype=torch.long)
    target[:, :32] = 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = paper(logits, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5 * 0.5 + 0.5 * math.log(2), abs=1e-5)


def test_shapes_that_would_broadcast_are_refused(paper):
    with pytest.raises(ValueError, match=r"logits \(2, 2, 3, 4, 5\) and target \(1, 3, 4, 5\)"):
        paper(_random(2)[0], torch.zeros(1, 3, 4, 5, dtype=torch.long))


def test_shipped_configurations():
    """The default is the paper's half and half; the others are its two parts."""
    logits, target = _random(2)

    def of(name):
        config = OmegaConf.load(CONF / "loss" / f"{name}.yaml")
        if name != "dice_ce":
            config = OmegaConf.merge(OmegaConf.load(CONF / "loss/dice_ce.yaml"), config)
            config.pop("defaults")
        return instantiate(config, "loss")(logits, target).item()

    assert of("dice_ce") == pytest.approx(0.5 * of("dice") + 0.5 * of("cross_entropy"), abs=1e-6)


def test_batch_dice_is_that_of_all_patches_together():
    """Eq. by hand: an empty patch with a false voxel adds to the sum, where it would be a Dice of 0 by itself."""
    logits, target = _random(2, dtype=torch.float64)
    target[1] = 0
    p, g = logits.softmax(1)[:, 1], (target == 1).double()
    dice = (2 * (p * g).sum() + 1e-5) / (p.sum() + g.sum() + 1e-5)
    loss = DiceCrossEntropy(1, 0, batch_dice=True)(logits, target)
    assert loss.item() == pytest.approx(1 - dice.item(), abs=1e-12)
    assert DiceCrossEntropy(1, 0)(logits, target).item() > loss.item() + 0.05


def test_batch_dice_equals_monais():
    logits, target = _random(3)
    monai = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True, lambda_ce=0.0)
    ours = DiceCrossEntropy(1, 0, batch_dice=True)(logits, target)
    assert ours.item() == pytest.approx(monai(logits, target.unsqueeze(1)).item(), abs=1e-6)


def test_heads_weigh_as_nnunets_do():
    """1, 1/2, 1/4, together 1."""
    heads = [_random(2, seed)[0] for seed in range(3)]
    target = _random(2)[1]
    alone = [DiceCrossEntropy(0.5, 0.5)(head, target).item() for head in heads]
    expected = (4 * alone[0] + 2 * alone[1] + alone[2]) / 7
    loss = DiceCrossEntropy(0.5, 0.5, head_decay=0.5)(heads, target)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert DiceCrossEntropy(0.5, 0.5)(heads, target).item() == pytest.approx(sum(alone) / 3, abs=1e-6)
