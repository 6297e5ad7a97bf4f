"""The convolutions of a network, and trying one out."""

import dataclasses

import pytest
import torch

from choices import OURS
from covidseg import build_network
from covidseg.nets.cost import multiply_adds
from covidseg.nets.kernels import Convolution, attempt, convolutions

SIZE = (32, 32, 32)
CPU = torch.device("cpu")


def meta(name):
    with torch.device("meta"):
        return build_network(name, width=4).eval()


@pytest.mark.parametrize("name", OURS)
def test_all_multiply_adds_of_a_network_are_in_its_convolutions(name):
    network = meta(name)
    found = convolutions(network, 2, SIZE)
    assert sum(one.multiply_adds * count for one, count in found.items()) == 2 * multiply_adds(network, SIZE)
    assert not any(part._forward_hooks for part in network.modules())


def test_each_kind_and_size_comes_once_with_its_count():
    found = convolutions(meta("unet3d"), 1, SIZE)
    (first,) = (one for one in found if one.input_shape[1] == 1)
    assert found[first] == 1 and first.name == "3 x 3 x 3, 1 -> 4, 1 of 32x32x32"
    assert any(one.transposed and one.stride == (2, 2, 2) for one in found)
    counts = {one.name: count for one, count in convolutions(meta("covidsegnet"), 1, SIZE).items()}
    assert counts["3 x 3 x 3, 4 -> 4, 1 of 32x32x32"] == 4  # the second of E1's block, PSB's two, the second of D1's


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_compared_with_those_of_float32(dtype):
    one = next(iter(convolutions(meta("unet3d"), 2, SIZE)))
    trial = attempt(one, CPU, dtype)
    rounding = 1e-5 if dtype is torch.float32 else 1e-2
    assert trial.error < rounding and trial.seconds > 0 and trial.multiply_adds == one.multiply_adds
    assert trial.teraflops == pytest.approx(6 * one.multiply_adds / trial.seconds / 1e12)


def test_a_wrong_kernel_is_seen(monkeypatch):
    """One that gives the right output in float32 alone, as oneDNN's thin bfloat16 gradients once did."""
    one = Convolution(False, 4, (3, 3, 3), (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1, (1, 4, 8, 8, 8))
    right = torch.nn.Conv3d.forward
    wrong = lambda self, x: right(self, x) * (1 if x.dtype is torch.float32 else 1.2)  # noqa: E731
    monkeypatch.setattr(torch.nn.Conv3d, "forward", wrong)
    assert attempt(one, CPU, torch.bfloat16).error > 0.1


def test_torchs_own_loops_are_called_slow():
    one = Convolution(False, 4, (3, 3, 3), (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1, (2, 4, 8, 8, 8))
    trial = attempt(one, CPU, torch.float32)
    assert trial.backend == "Mkldnn" and not trial.is_slow
    assert dataclasses.replace(trial, backend="SlowDilated3d").is_slow
