"""The convolution units against their formulae in plain array code."""

import numpy as np
import pytest
import torch
from torch import nn

from covidseg.blocks.conv import ConvBNReLU, PlainBlock, ResidualBlock

CHANNELS = {"same channels": (4, 4), "more channels": (3, 5), "fewer channels": (5, 3)}


def residual_block(x, block, reference):
    """ReLU(x + BN(conv(ReLU(BN(conv(x))))))."""
    first, second, norm = block.body
    shortcut = x
    if x.shape[0] != second.out_channels:
        convolution, projection_norm = block.shortcut
        shortcut = reference.batch_norm(reference.convolution(x, convolution), projection_norm)
    body = reference.batch_norm(reference.convolution(reference.unit(x, first), second), norm)
    return np.maximum(shortcut + body, 0)


@pytest.mark.parametrize("before, after", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_residual_block(before, after, seed, reference, randomised, compare):
    block = randomised(ResidualBlock(before, after), seed)
    assert compare(block, lambda x: residual_block(x, block, reference), before) < 1e-6


@pytest.mark.parametrize("before, after", CHANNELS.values(), ids=CHANNELS)
def test_plain_block_is_the_residual_block_without_the_addition(before, after, reference, randomised, compare):
    block = randomised(PlainBlock(before, after))
    assert compare(block, lambda x: reference.unit(reference.unit(x, block[0]), block[1]), before) < 1e-6


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size, dilation", [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_unit_pads_and_keeps_every_stride_th_voxel(kernel_size, stride, dilation, bias, reference, randomised, compare):
    block = randomised(ConvBNReLU(3, 2, kernel_size, stride, dilation, bias))
    assert (block[0].bias is not None) is bias

    def unit(x):
        return reference.unit(x, block, dilation)[:, ::stride, ::stride, ::stride]

    assert compare(block, unit, 3) < 1e-6


@pytest.mark.parametrize("make", [PlainBlock, ResidualBlock])
def test_kernels_of_a_block(make):
    sizes = [m.kernel_size for m in make(3, 5).modules() if isinstance(m, nn.Conv3d)]
    assert sizes == [(3, 3, 3), (3, 3, 3)] + [(1, 1, 1)] * (make is ResidualBlock)  # the projection


MUTATIONS = {
    "no last ReLU": lambda self, x: self.body(x) + self.shortcut(x),
    "ReLU before the addition": lambda self, x: torch.relu(self.body(x)) + self.shortcut(x),
    "no addition": lambda self, x: torch.relu(self.body(x)),
    "no shortcut's batch norm": lambda self, x: torch.relu(self.body(x) + self.shortcut[0](x)),
}


@pytest.mark.parametrize("broken", MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_residual_block_shows(broken, reference, randomised, compare, monkeypatch):
    block = randomised(ResidualBlock(3, 5))
    monkeypatch.setattr(ResidualBlock, "forward", broken)
    assert compare(block, lambda x: residual_block(x, block, reference), 3) > 1e-3
