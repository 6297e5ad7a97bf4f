"""Parameters, multiply-adds and bytes kept, against counting by hand."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from choices import OURS
from covidseg import build_network
from covidseg.blocks.conv import ConvBNReLU
from covidseg.nets.cost import bytes_for_backward, multiply_adds, network_cost, parameters

SIZE = (64, 128, 128)


def meta(name, **options):
    with torch.device("meta"):
        return build_network(name, **options)


@pytest.mark.parametrize("name", OURS)
def test_multiply_adds_are_those_of_the_convolutions(name):
    network = build_network(name, width=4).eval()
    x = torch.randn(1, 1, 32, 32, 32)
    total = 0

    def add(module, inputs, output):
        nonlocal total
        positions = (inputs[0] if isinstance(module, nn.ConvTranspose3d) else output).shape[2:].numel()
        total += module.weight.numel() * positions

    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(add)
    with torch.no_grad():
        network(x)
    assert multiply_adds(meta(name, width=4), (32, 32, 32)) == total


def test_network_cost_reads_a_configuration():
    config = {"_target_": "covidseg.nets.unet3d.UNet3D", "in_channels": 1, "out_channels": 2, "width": 32}
    count, adds = network_cost(config, SIZE)
    assert count == parameters(build_network("unet3d"))
    assert adds == pytest.approx(977e9, rel=1e-3)


def test_bytes_for_backward_of_one_unit():
    class OneUnit(nn.Module):
        in_channels = 1

        def __init__(self):
            super().__init__()
            self.unit = ConvBNReLU(1, 4)

        def forward(self, x):
            return self.unit(x)

    with torch.device("meta"):
        network = OneUnit()
    voxels = 2 * 8 * 8 * 8
    # the input of the convolution, the input and the output of the batch norm (the ReLU works in place), its statistics
    buffers = 2 * 4 * 4
    assert bytes_for_backward(network, 2, (8, 8, 8)) == 4 * (voxels + 2 * 4 * voxels) + 2 * 4 * 4 + buffers


def test_recomputing_keeps_less():
    plain = bytes_for_backward(meta("covidsegnet"), 2, SIZE)
    recomputing = bytes_for_backward(meta("covidsegnet", checkpoint_activations=True), 2, SIZE)
    assert 15 < plain / 2**30 < 18 and recomputing < plain / 6


class Live(TorchDispatchMode):
    """Bytes of all tensors alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.sizes:
                self.sizes[key] = tensor.untyped_storage().nbytes()
                self.now += self.sizes[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(tensor.untyped_storage(), self.drop, key)
        return result

    def drop(self, key):
        self.now -= self.sizes.pop(key)


@pytest.mark.parametrize("recompute, limit_gib", [(False, 18.5), (True, 8.5)])
def test_a_step_of_full_width_covidsegnet_at_batch_two_fits_24_gb(recompute, limit_gib):
    network = meta("covidsegnet", checkpoint_activations=recompute)
    with torch.device("meta"), Live() as live:
        logits = network(torch.empty(2, 1, *SIZE))
        nn.functional.cross_entropy(logits, torch.empty(2, *SIZE, dtype=torch.long)).backward()
    weights_and_adam = 3 * 4 * parameters(network)
    assert live.peak > bytes_for_backward(network, 2, SIZE)
    assert (live.peak + weights_and_adam) / 2**30 < limit_gib
