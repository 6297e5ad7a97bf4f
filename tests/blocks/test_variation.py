"""Feature variation against equations (1) to (4) in plain array code."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from covidseg.blocks import variation
from covidseg.blocks.variation import ChannelAttention, ContrastEnhancement, FeatureVariation, PositionSensitive

CHANNELS = 6
BRANCHES = {
    "cab": (ChannelAttention, None),
    "ceb": (ContrastEnhancement, None),
    "ceb, 1 x 1 x 1": (partial(ContrastEnhancement, kernel_size=1), None),
    "ceb, bottleneck": (partial(ContrastEnhancement, bottleneck=True), None),
    "psb": (None, PositionSensitive),
    "fv": (ContrastEnhancement, PositionSensitive),
}


def excitation(x, layers, reference):
    """Eq. (2): sigmoid(Cov1(ReLU(Cov3(GAP(x))))), (gates, 1, 1, 1)."""
    _, first, _, second, _ = layers
    pooled = x.mean(axis=(1, 2, 3), keepdims=True)
    return reference.sigmoid(reference.convolution(np.maximum(reference.convolution(pooled, first), 0), second))


def attention(x, layers, reference):
    """Eq. (4): sigmoid(Cov3(ReLU(BN(Cov3(x))))), (C, D, H, W)."""
    unit, last, _ = layers
    return reference.sigmoid(reference.convolution(reference.unit(x, unit), last))


def feature_variation(x, block, reference):
    """Eq. (1)."""
    v = reference.unit(x, block.cov1)
    parts = []
    if "contrast" in block.branches:
        parts.append(excitation(v, block.branches["contrast"].excite, reference) * v)  # eq. (3)
    if "position" in block.branches:
        parts.append(attention(v, block.branches["position"].attend, reference) * v)
    return x + reference.unit(np.concatenate([*parts, v]), block.cov3)


@pytest.mark.parametrize("contrast, position", BRANCHES.values(), ids=BRANCHES)
@pytest.mark.parametrize("seed", [0, 1])
def test_equation_1(contrast, position, seed, reference, randomised, compare):
    block = randomised(FeatureVariation(CHANNELS, contrast=contrast, position=position), seed)
    assert compare(block, lambda x: feature_variation(x, block, reference), CHANNELS) < 1e-6


@pytest.mark.parametrize("branch", [ContrastEnhancement, ChannelAttention])
def test_equation_3(branch, reference, randomised, compare):
    block = randomised(branch(CHANNELS))
    assert compare(block, lambda x: excitation(x, block.excite, reference) * x, CHANNELS) < 1e-6


def test_equation_4(reference, randomised, compare):
    block = randomised(PositionSensitive(CHANNELS))
    assert compare(block, lambda x: attention(x, block.attend, reference) * x, CHANNELS) < 1e-6


def test_ungated_is_equation_1_with_gates_of_one(reference, randomised, compare):
    block = randomised(FeatureVariation(CHANNELS, gated=False))

    def ungated(x):
        v = reference.unit(x, block.cov1)
        return x + reference.unit(np.concatenate([v, v, v]), block.cov3)

    assert compare(block, ungated, CHANNELS) < 1e-6


MUTATIONS = {
    "eq. 1: no residual": (FeatureVariation, "forward", lambda forward, self, x: forward(self, x) - x),
    "eq. 1: no identity branch": (torch, "cat", lambda cat, parts, dim: cat([*parts[:-1], 0 * parts[-1]], dim)),
    "eq. 1: branches swapped": (torch, "cat", lambda cat, parts, dim: cat([parts[1], parts[0], parts[2]], dim)),
    "eq. 1: Cov1 and Cov3 without ReLU": (nn.ReLU, "forward", lambda forward, self, x: x),
    "eq. 2: one gate for the batch": (ContrastEnhancement, "gate", lambda gate, self, x: gate(self, x).mean(0, True)),
    "eq. 2: maximum pool": (nn.AdaptiveAvgPool3d, "forward", lambda forward, self, x: x.amax((2, 3, 4), True)),
    "eq. 2: no sigmoid": (nn.Sigmoid, "forward", lambda forward, self, x: x),
    "eq. 3: gate added": (variation.Branch, "forward", lambda forward, self, x: self.gate(x) + x),
    "eq. 4: map of one channel": (PositionSensitive, "gate", lambda gate, self, x: gate(self, x).mean(1, True)),
}


@pytest.mark.parametrize("owner, name, broken", MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_equation_shows(owner, name, broken, reference, randomised, compare, monkeypatch):
    block = randomised(FeatureVariation(CHANNELS))
    whole = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: broken(whole, *args, **kwargs))
    assert compare(block, lambda x: feature_variation(x, block, reference), CHANNELS) > 1e-3


@pytest.mark.parametrize(
    "branch, shape",
    [
        (ContrastEnhancement, (2, 1, 1, 1, 1)),
        (ChannelAttention, (2, CHANNELS, 1, 1, 1)),
        (PositionSensitive, (2, CHANNELS, 3, 4, 5)),
    ],
)
def test_gate_is_one_number_per_what(branch, shape):
    x = torch.randn(2, CHANNELS, 3, 4, 5, dtype=torch.float64)  # in float32 two sigmoids of hundreds may be equal
    gate = branch(CHANNELS).double().gate(x)
    assert gate.shape == shape
    assert gate.min() >= 0 and gate.max() <= 1
    assert gate.unique().numel() == gate.numel()


@pytest.mark.parametrize("branch", [ContrastEnhancement, ChannelAttention])
def test_global_gates_work_in_training_at_batch_one(branch):
    assert torch.isfinite(branch(CHANNELS).train()(torch.randn(1, CHANNELS, 2, 2, 2))).all()


def test_centre_tap_alone_reaches_the_gate(randomised):
    full = randomised(ContrastEnhancement(CHANNELS))
    single = randomised(ContrastEnhancement(CHANNELS, kernel_size=1))
    state = full.state_dict()
    state["excite.1.weight"] = state["excite.1.weight"][..., 1:2, 1:2, 1:2]
    single.load_state_dict(state)
    x = torch.randn(2, CHANNELS, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(full(x), single(x), rtol=1e-12, atol=1e-14)  # each processor adds in an order of its own


def test_ungated_has_the_parameters_of_fv_and_a_gradient_for_each():
    gated, ungated = FeatureVariation(CHANNELS), FeatureVariation(CHANNELS, gated=False)
    assert [(n, p.shape) for n, p in gated.named_parameters()] == [(n, p.shape) for n, p in ungated.named_parameters()]
    ungated(torch.randn(2, CHANNELS, 3, 3, 3)).square().mean().backward()
    for name, parameter in ungated.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() != name.startswith("branches."), name


@pytest.mark.parametrize("channels, bottleneck, hidden", [(6, False, 6), (6, True, 3), (1, False, 1), (1, True, 1)])
def test_hidden_channels_of_the_gate(channels, bottleneck, hidden):
    layers = ContrastEnhancement(channels, bottleneck=bottleneck).excite
    assert (layers[1].out_channels, layers[3].in_channels) == (hidden, hidden)


@pytest.mark.parametrize("kernel_size", [2, 0, -1, 1.0, "3", None, True])
def test_a_kernel_without_a_centre_is_refused(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size is an odd whole number from 1 on, not {kernel_size!r}"):
        ContrastEnhancement(CHANNELS, kernel_size=kernel_size)
