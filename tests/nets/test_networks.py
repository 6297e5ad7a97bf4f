"""What holds for every network: shapes, the size rule, gradients everywhere, recomputed activations, slots."""

import copy
import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from choices import NETWORKS, OURS, PYRAMIDS, RECOMPUTING, SLOTTED, VARIATIONS, small_network
from covidseg import build_network
from covidseg.blocks.pyramid import PASPP
from covidseg.blocks.variation import FeatureVariation
from covidseg.nets.network import laid_out, memory_format
from covidseg.system.errors import BadInput

HEADS = {"unetpp": 4, "dynunet": 4, "mednext": 5}  # under deep supervision


def volume(network, batch=2, channels=1, seed=0):
    side = max(network.stride, 8)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, side, side, 2 * side, generator=generator)


def loss(logits):
    heads = logits if isinstance(logits, list) else [logits]
    return sum(head.square().mean() for head in heads) / len(heads)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("in_channels, out_channels", [(1, 1), (1, 2), (3, 3)])
def test_logits_at_the_size_of_the_input(name, in_channels, out_channels):
    network = small_network(name, in_channels=in_channels, out_channels=out_channels)
    x = volume(network, channels=in_channels)
    shape = (2, out_channels, *x.shape[2:])
    with torch.no_grad():
        assert network.eval()(x).shape == shape
        logits = network.train()(x)
    heads = logits if isinstance(logits, list) else [logits]
    assert {head.shape for head in heads} == {shape}
    assert len(heads) == HEADS.get(name, len(heads))


@pytest.mark.parametrize("name", NETWORKS)
def test_any_multiple_of_the_stride_and_nothing_else(name):
    network = small_network(name).eval()
    stride = network.stride
    with torch.no_grad():
        assert network(torch.randn(1, 1, stride, 2 * stride, 3 * stride)).shape[2:] == (stride, 2 * stride, 3 * stride)
    if stride > 1:
        padded = re.escape(f"pad {stride + 1} x {stride} x {stride - 1} to {2 * stride} x {stride} x {stride}")
        with pytest.raises(ValueError, match=padded):
            network(torch.zeros(1, 1, stride + 1, stride, stride - 1))
    with pytest.raises(ValueError, match=f"pad 0 x {stride} x {stride} to {stride} x {stride} x {stride}"):
        network(torch.zeros(1, 1, 0, stride, stride))
    for wrong in (torch.zeros(1, 2, stride, stride, stride), torch.zeros(1, stride, stride, stride)):
        with pytest.raises(ValueError, match=re.escape("(B, 1, D, H, W)")):
            network(wrong)


@pytest.mark.parametrize("option", ["in_channels", "out_channels", "width"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "4", True])
def test_sizes_of_a_network_are_whole_numbers(option, value):
    from covidseg.nets.unet3d import UNet3D

    with pytest.raises(ValueError, match=option):
        UNet3D(**{option: value})


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient(name):
    network = small_network(name)
    loss(network(volume(network))).backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", SLOTTED)
@pytest.mark.parametrize(
    "variation, pyramid", [(v, "none") for v in VARIATIONS] + [("none", p) for p in PYRAMIDS] + [("fv", "paspp")]
)
def test_every_block_fits_every_encoder_decoder(name, variation, pyramid):
    network = build_network(name, variation=variation, pyramid=pyramid, width=4)
    logits = network(volume(network))
    loss(logits).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    variations = sum(isinstance(module, FeatureVariation) for module in network.modules())
    stages = {"covidsegnet": 3, "unet3d": 3, "vnet": 4, "unetpp": 4}
    assert variations > 0 if variation != "none" else variations == 0
    assert name not in stages or variations in (0, stages[name])


@pytest.mark.parametrize("name", ["covidsegnet", "unet3d", "vnet", "unetpp"])
def test_slots_are_called_with_the_channels_of_their_stage(name):
    asked = {"variation": [], "pyramid": []}

    def block(slot, channels):
        asked[slot].append(channels)
        return nn.Conv3d(channels, channels, 1)

    network = build_network(name, variation=partial(block, "variation"), pyramid=partial(block, "pyramid"), width=4)
    assert (
        asked
        == {
            "covidsegnet": {"variation": [4, 8, 16], "pyramid": [32]},
            "unet3d": {"variation": [8, 16, 32], "pyramid": [64]},
            "vnet": {"variation": [4, 8, 16, 32], "pyramid": [64]},
            "unetpp": {"variation": [4, 8, 16, 32], "pyramid": [64]},
        }[name]
    )
    loss(network(volume(network))).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", SLOTTED)
def test_an_empty_slot_changes_nothing(name):
    network = build_network(name, variation="none", pyramid="none", width=4)
    assert not [key for key in network.state_dict() if "variation" in key or "pyramid" in key]


def plain_and_recomputing(name):
    slots = {"variation": "fv", "pyramid": "paspp"} if name in SLOTTED else {}
    plain = build_network(name, width=2, **slots).double()
    recomputing = build_network(name, width=2, checkpoint_activations=True, **slots).double()
    recomputing.load_state_dict(plain.state_dict())
    return plain, recomputing


def assert_train_the_same(plain, other):
    x = volume(plain).double()
    for _ in range(2):
        for network in (plain, other):
            loss(network(x)).backward()
    for (key, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-10, atol=1e-14, msg=key)
    for (key, one), two in zip(plain.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two), key  # batch norm saw each batch once


@pytest.mark.parametrize("name", RECOMPUTING)
@pytest.mark.parametrize(
    "convert", [nn.Identity(), nn.SyncBatchNorm.convert_sync_batchnorm], ids=["local", "synchronised"]
)
def test_recomputed_activations_train_the_same(name, convert):
    plain, recomputing = map(convert, plain_and_recomputing(name))
    assert_train_the_same(plain, recomputing)
    assert {norm.momentum for norm in recomputing.modules() if isinstance(norm, _BatchNorm)} == {0.1}


@pytest.mark.slow
def test_compiled_and_recomputed_activations_train_the_same():
    plain, recomputing = plain_and_recomputing("covidsegnet")
    recomputing.compile(backend="aot_eager")
    assert_train_the_same(plain, recomputing)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_and_a_state_dict_are_the_network(name):
    network = small_network(name).eval()
    recomputing = {"checkpoint_activations": True} if name in RECOMPUTING else {}
    twin = small_network(name, **recomputing).eval()
    twin.load_state_dict(network.state_dict())
    x = volume(network)
    with torch.no_grad():
        assert torch.equal(network(x), twin(x))
        assert torch.equal(network(x), copy.deepcopy(network)(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_gradients_of_bfloat16_on_a_cpu_are_refused(name):
    network = small_network(name)
    x = torch.zeros(1, 1, *[network.stride * (network.kernel_size - 1)] * 3)  # thinner than the kernel at the bottom
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(BadInput, match="bfloat16"):
        network(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.isfinite(network.eval()(x)).all()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_network_in_bfloat16_is_refused_for_one_thin_axis(name, axis):
    network = small_network(name).bfloat16()
    size = [1, 1] + [network.stride * network.kernel_size] * 3
    size[axis] -= network.stride
    with pytest.raises(BadInput, match="bfloat16"):
        network(torch.zeros(size, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", [name for name in OURS if name != "vnet"])  # whose smallest volume takes a minute
def test_bfloat16_channels_last(name):
    """Gradients where they are not refused point where float32's do (.78 to 1.0, FCN the least; garbage: near 0)."""
    network = build_network(name, width=4, checkpoint_activations=True).to(memory_format=torch.channels_last_3d)
    side = network.kernel_size * network.stride
    x = torch.randn(2, 1, side, side, side).to(memory_format=torch.channels_last_3d)
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = network(x)
        loss(logits).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert torch.isfinite(gradients[1]).all()
    assert torch.cosine_similarity(*gradients, dim=0) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
@pytest.mark.filterwarnings("ignore")
def test_export_and_onnx_at_two_sizes(name, tmp_path):
    import onnxruntime

    slots = {"variation": "fv", "pyramid": "paspp"} if name in SLOTTED else {}
    network = build_network(name, width=4, **slots)
    network(volume(network, seed=1))  # running statistics that are not the initial ones
    network.eval()
    stride = network.stride
    sample = torch.randn(
        2, 1, 2 * stride if stride > 1 else 6, 2 * stride if stride > 1 else 7, 3 * stride + 5 * (stride == 1)
    )
    other = torch.randn(2, 1, *(3 * side // 2 // stride * stride for side in sample.shape[2:]))
    axes = {axis: stride * torch.export.Dim(f"d{axis}", min=1, max=64) for axis in (2, 3, 4)}
    exported = torch.export.export(network, (sample,), dynamic_shapes=(axes,))
    path = tmp_path / "network.onnx"
    torch.onnx.export(exported, (sample,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    for x in (sample, other):
        with torch.no_grad():
            logits = network(x)
            torch.testing.assert_close(exported.module()(x), logits, rtol=1e-5, atol=1e-6)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits, rtol=1e-4, atol=1e-4)


def test_pyramid_reaches_the_paper_layer():
    assert isinstance(build_network("covidsegnet", width=4).context, PASPP)


@pytest.mark.parametrize("name", ["covidsegnet", "unet3d", "vnet", "unetpp"])
def test_a_slot_that_makes_no_block_is_refused(name):
    """A block in the slot's place: called with the channels, an identity gives back the number."""
    with pytest.raises((BadInput, ValueError), match="a slot makes a block of 32 channels, and this one made 32"):
        build_network(name, width={"covidsegnet": 4, "vnet": 2}.get(name, 2), pyramid=torch.nn.Identity())


@pytest.fixture
def two_threads():
    """With one, torch's own loop takes small convolutions on a CPU, which knows contiguous maps alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_all_large_maps_of_a_channels_last_network_are_channels_last(two_threads):
    """One channel is in both formats at once: without `laid_out` the shortcut's map of it is contiguous."""
    network = build_network("covidsegnet", width=4).to(memory_format=torch.channels_last_3d)
    turned = []

    def note(module, inputs, output):
        if output.shape[2] > 1 and not output.is_contiguous(memory_format=torch.channels_last_3d):
            turned.append(type(module).__name__)

    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.BatchNorm3d):
            module.register_forward_hook(note)
    image = torch.randn(2, 1, 16, 16, 16)
    network(image.contiguous(memory_format=torch.channels_last_3d))
    assert turned  # what torch makes of it by itself
    turned.clear()
    network(laid_out(image, memory_format(network)))
    assert not turned


def test_the_layout_changes_no_value_and_follows_the_network():
    image = torch.randn(2, 1, 4, 5, 6)
    assert torch.equal(laid_out(image, torch.channels_last_3d), image)
    assert laid_out(image, torch.contiguous_format).stride() == image.stride()
    several = torch.randn(2, 3, 4, 5, 6)
    assert laid_out(several, torch.channels_last_3d).is_contiguous(memory_format=torch.channels_last_3d)
    network = build_network("unet3d", width=4)
    assert memory_format(network) is torch.contiguous_format
    assert memory_format(network.to(memory_format=torch.channels_last_3d)) is torch.channels_last_3d
