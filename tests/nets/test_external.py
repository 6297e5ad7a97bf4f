"""Networks of other libraries behind this suite's interface."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from covidseg import build_network
from covidseg.config.paths import CONF
from covidseg.nets.cost import network_cost
from covidseg.nets.external import ExternalNetwork
from covidseg.system.errors import BadInput


@pytest.mark.parametrize(
    ("name", "millions"),
    # nnU-Net's 3D full resolution network; Hatamizadeh et al. 2022, table 2; Roy et al. 2023, table 1: S, kernel 3
    [("dynunet", 31.2), ("swinunetr", 62.2), ("mednext", 5.6)],
)
def test_parameters_are_those_of_the_papers(name, millions):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[f"model={name}"]).model
    count, multiply_adds = network_cost(config, (32, 64, 64))
    assert count / 1e6 == pytest.approx(millions, rel=0.01)
    assert multiply_adds > 0


@pytest.mark.parametrize("name", ["dynunet", "mednext"])
def test_deep_supervision_is_an_option(name):
    network = build_network(name, width=4, **{"constructor.deep_supervision": False})
    assert isinstance(network(torch.randn(1, 1, 32, 32, 64)), torch.Tensor)


def test_logits_are_the_librarys_own():
    network = build_network("segresnet", width=8).eval()
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(x), network.network(x))


class Heads(nn.Module):
    """Logits of three sizes, the second constant, as a tuple."""

    def __init__(self, in_channels, out_channels, filters):
        super().__init__()
        self.filters = filters
        self.last = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x):
        half = torch.full((x.shape[0], 2, *(side // 2 for side in x.shape[2:])), 3.0)
        return self.last(x), half, self.last(x[:, :, ::4, ::4, ::4])


def test_smaller_heads_are_brought_to_the_size_of_the_input():
    network = ExternalNetwork(Heads, stride=4, multiples={"filters": [1, 2.5]}, width=4)
    assert network.network.filters == [4, 10]
    first, second, third = network(torch.randn(2, 1, 4, 8, 12))
    assert {head.shape for head in (first, second, third)} == {(2, 2, 4, 8, 12)}
    assert torch.equal(second, torch.full_like(second, 3.0))


def test_a_width_that_the_network_does_not_take_is_refused_with_what_it_became():
    with pytest.raises(BadInput, match=r"with width 3, that is \{'feature_size': 18\}.*12"):
        build_network("swinunetr", width=3)


def test_one_voxel_at_the_bottom_is_refused_in_one_line_where_instance_norm_would_fail():
    network = build_network("dynunet", width=4)
    with pytest.raises(BadInput, match=r"32 x 32 x 32 leave DynUNet one voxel at its bottom.*64 voxels on one side"):
        network(torch.zeros(1, 1, 32, 32, 32))
    assert network.eval()(torch.zeros(1, 1, 32, 64, 32)).shape == (1, 2, 32, 64, 32)
    assert build_network("segresnet", width=8)(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)
