"""Slow float64 references for the blocks, in plain array code: scipy's correlation, one pair of channels at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import expit


def _convolution(x, layer, dilation=1):
    """`layer`'s weights on x (C, D, H, W): zero padding, one correlation per pair of channels, a kernel with holes."""
    weight = layer.weight.detach().numpy()
    side = dilation * (weight.shape[-1] - 1) + 1
    out = np.zeros((weight.shape[0], *x.shape[1:]))
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            kernel = np.zeros((side, side, side))
            kernel[::dilation, ::dilation, ::dilation] = weight[o, i]
            out[o] += ndimage.correlate(x[i], kernel, mode="constant")
        if layer.bias is not None:
            out[o] += layer.bias[o].item()
    return out


def _batch_norm(x, layer):
    mean, variance, gain, shift = (
        value.detach().numpy()[:, None, None, None]
        for value in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    return (x - mean) / np.sqrt(variance + layer.eps) * gain + shift


def _unit(x, layers, dilation=1):
    """Convolution, batch norm, ReLU."""
    convolution, norm, _ = layers
    return np.maximum(_batch_norm(_convolution(x, convolution, dilation), norm), 0)


@pytest.fixture(autouse=True)
def same_weights_in_any_order():
    """Each test draws the weights and volumes that it draws when it runs alone."""
    torch.manual_seed(0)


@pytest.fixture
def reference():
    return SimpleNamespace(convolution=_convolution, batch_norm=_batch_norm, unit=_unit, sigmoid=expit)


@pytest.fixture
def randomised():
    """Give a block fresh weights and running statistics, in double precision and eval mode."""

    def randomise(block, seed=0):
        generator = torch.Generator().manual_seed(seed)
        block = block.double().eval()
        with torch.no_grad():
            for name, value in block.state_dict().items():
                if value.is_floating_point():
                    value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.5)
                if name.endswith("running_var"):
                    value.abs_().add_(0.5)
        return block

    return randomise


@pytest.fixture
def compare():
    """Largest relative error of a block against a function of one sample (C, D, H, W), on two random samples."""

    def error(block, function, channels, size=(5, 4, 6), seed=1):
        x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            found = block(x).numpy()
        wanted = np.stack([function(sample) for sample in x.numpy()])
        assert found.shape == wanted.shape
        return np.abs(found - wanted).max() / np.abs(wanted).max()

    return error
