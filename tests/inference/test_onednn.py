"""A window alone is computed as one of two is, and not slower."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from covidseg import build_network
from covidseg.inference.onednn import OneDnnConvolutions, single_windows
from covidseg.inference.window import WindowInferer

CPU = torch.device("cpu")


@pytest.mark.parametrize("options", [
    {}, {"bias": None}, {"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"groups": 2},
    {"padding": "same"},
])  # fmt: skip
def test_a_convolution_of_one_sample_is_that_of_double_precision(options):
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 4, 6, 7, 8, generator=rng)
    weight = torch.rand(6, 4 // options.get("groups", 1), 3, 3, 3, generator=rng)
    bias = torch.rand(6, generator=rng)
    given = {"bias": bias, **options}
    right = F.conv3d(
        image.double(),
        weight.double(),
        **{k: v.double() if k == "bias" and v is not None else v for k, v in given.items()},
    )
    with torch.inference_mode(), OneDnnConvolutions():
        found = F.conv3d(image, weight, **given)
    assert torch.allclose(found.double(), right, rtol=1e-5)


@pytest.mark.parametrize("name", ["fcn", "fdfcn", "unet3d", "vnet", "unetpp", "covidsegnet"])
def test_one_window_gives_the_logits_it_gives_beside_another(name):
    torch.manual_seed(0)
    network = build_network(name, width=4, in_channels=1, out_channels=2).eval()
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        pair = network(torch.cat([image, image]))[:1]
        with single_windows(network, CPU):
            alone = network(image)
    assert torch.allclose(alone, pair, atol=1e-4 * float(pair.abs().max()))


def test_it_is_around_the_windows_and_around_nothing_else(monkeypatch):
    seen = []

    class Spy(nn.Module):
        stride = 8

        def forward(self, windows):
            seen.append(any(isinstance(mode, OneDnnConvolutions) for mode in modes()))
            return torch.cat([windows, -windows], dim=1)

    def modes():
        from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

        return _get_current_dispatch_mode_stack()

    WindowInferer([8, 8, 8], 0.0)(Spy(), torch.zeros(1, 1, 8, 8, 16), 0.0)
    assert seen == [True, True] and modes() == []


def test_a_compiled_network_and_another_device_are_left_alone():
    network = nn.Conv3d(1, 1, 1)
    assert not isinstance(single_windows(network, torch.device("cuda")), OneDnnConvolutions)
    assert isinstance(single_windows(network, CPU), OneDnnConvolutions)
    network.compile()
    assert not isinstance(single_windows(network, CPU), OneDnnConvolutions)


def test_a_window_alone_is_no_longer_several_times_slower():
    """Of the demo's network; 5 times less CPU time where this was written, asked for with a wide margin."""
    network = build_network("covidsegnet", width=8, in_channels=1, out_channels=2).eval()
    image = torch.rand(1, 1, 32, 48, 48)

    def seconds():
        times = []
        for _ in range(4):
            began = time.process_time()
            network(image)
            times.append(time.process_time() - began)
        return min(times)

    with torch.inference_mode():
        slow = seconds()
        with single_windows(network, CPU):
            fast = seconds()
    assert fast < slow / 1.5
