"""Each network against its paper: parameter counts, layer plans, and peers where one exists."""

import pytest
import torch
from torch import nn

from covidseg import build_network
from covidseg.blocks.conv import ResidualBlock
from covidseg.blocks.variation import FeatureVariation
from covidseg.nets.vnet import VNet
from covidseg.system.errors import BadInput


def meta(name, **options):
    with torch.device("meta"):
        return build_network(name, **options)


def count(network, batch_norm=True):
    norms = sum(p.numel() for m in network.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters())
    return sum(p.numel() for p in network.parameters()) - (0 if batch_norm else norms)


def plan(network):
    """(in, out, kernel, stride) of each convolution, in the order of the drawing."""
    kinds = (nn.Conv3d, nn.ConvTranspose3d)
    return [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0])
        for m in network.modules()
        if isinstance(m, kinds)
    ]


def test_unet3d_has_the_parameters_its_paper_reports():
    network = meta("unet3d", in_channels=3, out_channels=3)
    assert count(network, batch_norm=False) == 19_069_955  # Cicek et al. 2016, section 3
    assert [m.bias for m in network.modules() if isinstance(m, nn.ConvTranspose3d)] == [None] * 3


def test_unet3d_doubles_before_the_pool_and_keeps_channels_in_the_up_convolutions():
    assert plan(meta("unet3d")) == [
        (1, 32, 3, 1), (32, 64, 3, 1), (64, 64, 3, 1), (64, 128, 3, 1),
        (128, 128, 3, 1), (128, 256, 3, 1), (256, 256, 3, 1), (256, 512, 3, 1),
        (512, 512, 2, 2), (768, 256, 3, 1), (256, 256, 3, 1),
        (256, 256, 2, 2), (384, 128, 3, 1), (128, 128, 3, 1),
        (128, 128, 2, 2), (192, 64, 3, 1), (64, 64, 3, 1), (64, 2, 1, 1),
    ]  # fmt: skip


def test_vnet_follows_the_stage_plan_of_its_paper():
    network = meta("vnet", batch_norm=False)
    assert count(network) == 65_175_314
    stages = [*network.encoder, *(stage.stage for stage in network.decoder)]
    convolutions = [[m for m in stage.convolutions if isinstance(m, nn.Conv3d)] for stage in stages]
    assert [len(stage) for stage in convolutions] == [1, 2, 3, 3, 3, 3, 3, 2, 1]
    assert [stage[-1].out_channels for stage in convolutions] == [16, 32, 64, 128, 256, 256, 128, 64, 32]
    assert {layer.kernel_size for stage in convolutions for layer in stage} == {(5, 5, 5)}
    scalings = [m for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d) and m.stride == (2, 2, 2)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in scalings] == [
        (before, after, (2, 2, 2))
        for before, after in [(16, 32), (32, 64), (64, 128), (128, 256), (256, 128), (256, 64), (128, 32), (64, 16)]
    ]
    assert not any(isinstance(m, nn.ReLU | nn.MaxPool3d | nn.BatchNorm3d) for m in network.modules())
    assert sum(isinstance(m, nn.BatchNorm3d) for m in meta("vnet").modules()) == 21 + 8  # the declared switch


@pytest.mark.parametrize("batch_norm", [False, True])
def test_vnet_ends_every_convolution_with_a_prelu_of_one_slope_a_channel(batch_norm):
    network = meta("vnet", batch_norm=batch_norm)
    norm = [nn.BatchNorm3d] if batch_norm else []
    for scaling, kind in [(m, nn.Conv3d) for m in network.down] + [(m.up, nn.ConvTranspose3d) for m in network.decoder]:
        assert [type(layer) for layer in scaling] == [kind, *norm, nn.PReLU]
        assert scaling[-1].num_parameters == scaling[0].out_channels
    for stage in [*network.encoder, *(stage.stage for stage in network.decoder)]:
        unit = [nn.Conv3d, *norm, nn.PReLU]
        layers = [*stage.convolutions, stage.activation]  # the addition stands before the last
        assert [type(layer) for layer in layers] == unit * (len(layers) // len(unit))
        slopes = {layer.num_parameters for layer in layers if isinstance(layer, nn.PReLU)}
        assert slopes == {stage.convolutions[0].out_channels}


def test_vnet_stage_adds_its_input_before_the_last_prelu():
    stage = build_network("vnet", width=4, batch_norm=False).decoder[-1].stage
    nn.init.zeros_(stage.convolutions[0].weight)
    nn.init.zeros_(stage.convolutions[0].bias)
    x = torch.randn(1, 8, 4, 4, 4)
    assert torch.equal(stage(x), torch.where(x > 0, x, 0.25 * x))


def test_vnet_repeats_the_image_over_the_first_stage():
    stage = build_network("vnet", width=4, in_channels=3, batch_norm=False).encoder[0]
    nn.init.zeros_(stage.convolutions[0].weight)
    nn.init.zeros_(stage.convolutions[0].bias)
    x = torch.rand(1, 3, 4, 4, 4)
    assert torch.equal(stage(x), x[:, [0, 1, 2, 0]])


def test_vnet_refuses_an_image_of_more_channels_than_its_first_stage():
    with pytest.raises(ValueError, match="width is at least in_channels=3 in VNet, not 2"):
        VNet(in_channels=3, width=2)


def test_unetpp_is_monais_with_batch_norm_and_relu():
    from monai.networks.nets import BasicUNetPlusPlus

    features = (4, 8, 16, 32, 64, 4)
    theirs = BasicUNetPlusPlus(3, 1, 2, features, deep_supervision=True, act="relu", norm="batch")
    ours = build_network("unetpp", width=4)
    values = theirs.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))  # both list their nodes column by column
    x = torch.randn(2, 1, 16, 32, 16)
    for found, wanted in zip(ours.train()(x), theirs.train()(x), strict=True):
        torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x)[-1])


def test_unetpp_parameters():
    assert count(meta("unetpp")) == 26_382_056  # MONAI's, features (32, 64, 128, 256, 512, 32)
    heads = [name for name, _ in meta("unetpp", deep_supervision=False).heads.named_children()]
    assert heads == ["x04"]


def test_unetpp_without_deep_supervision_has_no_idle_parameter():
    network = build_network("unetpp", width=4, deep_supervision=False)
    network(torch.randn(2, 1, 16, 16, 16)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def covidsegnet_weights(variation, pyramid):
    """Weights of the convolutions from the readings: no biases, no batch norm, no head."""
    c = [64, 128, 256, 512]
    residual = 27 * (c[0] + c[0] ** 2) + c[0] + sum(2 * 27 * n**2 for n in c[1:3])  # E1 has a projection
    down = sum(27 * 2 * n * n for n in c[:3])
    decoder = sum(8 * 2 * n * n + 27 * 2 * n * n + 27 * n * n + 2 * n * n for n in c[:3])
    fv = sum(163 * n**2 for n in c[:3]) if variation else 0  # 1 + 81 + 27 + 2 * 27
    bottom = 9.25 * c[3] ** 2 if pyramid else 2 * 27 * c[3] ** 2
    return residual + down + decoder + fv + bottom


@pytest.mark.parametrize(
    "variation, pyramid, parameters",
    [
        ("fv", "paspp", 34_157_509),
        ("none", "none", 31_861_762),
        ("fv", "none", 45_886_405),
        ("none", "paspp", 20_132_866),
    ],
)
def test_covidsegnet_parameters(variation, pyramid, parameters):
    network = meta("covidsegnet", variation=variation, pyramid=pyramid)
    weights = sum(
        m.weight.numel()
        for m in network.modules()
        if isinstance(m, nn.Conv3d | nn.ConvTranspose3d) and m is not network.head
    )
    single_gates = sum((64, 128, 256)) if variation == "fv" else 0  # Cov1 of eq. (2), C -> 1
    assert weights - single_gates == covidsegnet_weights(variation == "fv", pyramid == "paspp")
    assert count(network) == parameters  # the rest: batch norms, the biases of the gates, the head


@pytest.mark.parametrize(
    "variation, parameters",
    [
        ("cab", sum(83 * n**2 + 6 * n for n in (64, 128, 256))),  # Cov1 1, gate 27 + 1, Cov3 54; biases, batch norms
        ("ceb", sum(82 * n**2 + 6 * n + 1 for n in (64, 128, 256))),
        ("psb", sum(109 * n**2 + 7 * n for n in (64, 128, 256))),
        ("fv", sum(163 * n**2 + 9 * n + 1 for n in (64, 128, 256))),
    ],
)
def test_parameters_of_a_variation(variation, parameters):
    unet4 = count(meta("covidsegnet", variation="none", pyramid="none"))
    assert count(meta("covidsegnet", variation=variation, pyramid="none")) - unet4 == parameters


def test_fv_adds_and_paspp_removes_what_the_readings_say():
    unet4 = count(meta("covidsegnet", variation="none", pyramid="none"))
    assert count(meta("covidsegnet", pyramid="none")) - unet4 == pytest.approx(14.0e6, rel=5e-3)
    assert count(meta("covidsegnet", variation="none")) - unet4 == pytest.approx(-11.7e6, rel=5e-3)
    assert count(meta("covidsegnet", variation="fv_ungated", pyramid="none")) == count(
        meta("covidsegnet", pyramid="none")
    )


def test_covidsegnet_scales_with_batch_norm_and_relu_and_ends_in_one_convolution():
    network = meta("covidsegnet")
    for scaling, kind, side in [(down, nn.Conv3d, 3) for down in network.down] + [
        (stage.up, nn.ConvTranspose3d, 2) for stage in network.decoder
    ]:
        assert [type(layer) for layer in scaling] == [kind, nn.BatchNorm3d, nn.ReLU]
        assert (scaling[0].kernel_size, scaling[0].stride) == ((side,) * 3, (2,) * 3)
        assert scaling[0].bias is None
    assert (type(network.head), network.head.kernel_size) == (nn.Conv3d, (1, 1, 1))
    assert network.head.bias is not None


def test_unet4_has_a_residual_block_at_the_bottom():
    unet4 = meta("covidsegnet", variation="none", pyramid="none")
    assert isinstance(unet4.context, ResidualBlock) and unet4.context.body[0][0].in_channels == 512


def test_covidsegnet_alternatives():
    position = meta("covidsegnet", variation_position="after_down")
    channels = [m.cov1[0].in_channels for m in position.modules() if isinstance(m, FeatureVariation)]
    assert channels == [128, 256, 512]
    pooled = meta("covidsegnet", downsampling="maxpool")
    assert sum(isinstance(m, nn.MaxPool3d) for m in pooled.modules()) == 3
    assert not any(m.stride == (2, 2, 2) for m in pooled.modules() if isinstance(m, nn.Conv3d))
    assert {convolution[0].kernel_size for _, convolution in pooled.down} == {(1, 1, 1)}
    plain = meta("covidsegnet", block="plain", variation="none", pyramid="none")
    assert not any(isinstance(m, ResidualBlock) for m in plain.modules())
    projections = 64 + sum(2 * n * n for n in (64, 128, 256)) + 2 * (64 + 64 + 128 + 256)  # weights, batch norm
    assert count(meta("covidsegnet", variation="none", pyramid="none")) - count(plain) == projections
    for wrong in (
        {"block": "dense"},
        {"upsampling_kernel": 4},
        {"variation_position": "first"},
        {"downsampling": "average"},
    ):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            meta("covidsegnet", **wrong)


def test_the_deconvolution_may_overlap_and_still_doubles_the_size():
    """Reading 22. In place of 8 C_in C_out weights a level has 27; nothing else changes, and any size is doubled."""
    two, three = (build_network("covidsegnet", "none", "none", width=4, upsampling_kernel=kernel) for kernel in (2, 3))
    weights = [sum(p.numel() for p in network.parameters()) for network in (two, three)]
    assert weights[1] - weights[0] == (27 - 8) * (32 * 16 + 16 * 8 + 8 * 4)
    assert two.state_dict().keys() == three.state_dict().keys()
    x = torch.zeros(1, 1, 8, 16, 24)
    assert three.eval()(x).shape == two.eval()(x).shape == (1, 2, 8, 16, 24)
    up = three.decoder[0].up[0]
    assert up(torch.zeros(1, 32, 3, 5, 2)).shape == (1, 16, 6, 10, 4)


@pytest.mark.parametrize("position", ["after_block", "after_down"])
@pytest.mark.parametrize("downsampling", ["conv", "maxpool"])
def test_covidsegnet_data_flow(position, downsampling):
    """The forward pass spelled out: block, variation, skip, down; or block, skip, down, variation."""
    network = build_network("covidsegnet", width=4, variation_position=position, downsampling=downsampling).eval()
    x = torch.randn(1, 1, 8, 16, 8)
    variations = [m for m in network.modules() if isinstance(m, FeatureVariation)]
    with torch.no_grad():
        y, skips = x, []
        for level in range(3):
            y = network.block[level](y)
            if position == "after_block":
                y = variations[level](y)
            skips.append(y)
            y = network.down[level](y)
            if position == "after_down":
                y = variations[level](y)
        y = network.context(y)
        for level in (2, 1, 0):
            stage = network.decoder[2 - level]
            y = stage.block(torch.cat([stage.up(y), skips[level]], 1))
        assert torch.equal(network(x), network.head(y))


def test_unet3d_data_flow():
    network = build_network("unet3d", width=4, variation="fv", pyramid="aspp").eval()
    x = torch.randn(1, 1, 8, 16, 8)
    pool = nn.functional.max_pool3d
    with torch.no_grad():
        e1 = network.variation[0](network.encoder[0](x))
        e2 = network.variation[1](network.encoder[1](pool(e1, 2)))
        e3 = network.variation[2](network.encoder[2](pool(e2, 2)))
        y = network.pyramid(network.encoder[3](pool(e3, 2)))
        for stage, skip in zip(network.decoder, (e3, e2, e1), strict=True):
            y = stage.convolutions(torch.cat([stage.up(y), skip], 1))
        assert torch.equal(network(x), network.head(y))


def test_vnet_data_flow():
    network = build_network("vnet", width=4, variation="fv", pyramid="aspp").eval()
    x = torch.randn(1, 1, 16, 32, 16)
    with torch.no_grad():
        y, skips = x, []
        for level in range(4):
            skips.append(network.variation[level](network.encoder[level](y)))
            y = network.down[level](skips[-1])
        y = network.pyramid(network.encoder[4](y))
        for stage, skip in zip(network.decoder, skips[::-1], strict=True):
            y = stage.stage(torch.cat([stage.up(y), skip], 1))
        assert torch.equal(network(x), network.head(y))


def test_fcn_fuses_the_scores_of_three_depths():
    network = build_network("fcn", width=4).eval()
    x = torch.randn(1, 1, 32, 64, 32)
    with torch.no_grad():
        pools = [network.stages[0](x)]
        for stage in network.stages[1:]:
            pools.append(stage(pools[-1]))
        y = network.up4(network.score(network.classifier(pools[4]))) + network.score4(pools[3])
        y = network.up3(y) + network.score3(pools[2])
        wanted = nn.functional.interpolate(y, size=x.shape[2:], mode="trilinear", align_corners=False)
        torch.testing.assert_close(network(x), wanted)


def test_fcn_is_vgg16_and_starts_with_linear_up_sampling():
    network = meta("fcn")
    assert [sum(isinstance(m, nn.Conv3d) for m in stage.modules()) for stage in network.stages] == [2, 2, 3, 3, 3]
    assert [stage[-2][0].out_channels for stage in network.stages] == [64, 128, 256, 512, 512]
    up = build_network("fcn", width=4).up4
    x = torch.randn(1, 2, 5, 6, 7)
    wanted = nn.functional.interpolate(x, scale_factor=2, mode="trilinear")[..., 2:-2, 2:-2, 2:-2]
    torch.testing.assert_close(up(x)[..., 2:-2, 2:-2, 2:-2], wanted)


def test_fdfcn_blocks_do_not_pass_their_input_on():
    network = meta("fdfcn")
    assert [block.connect[0].in_channels for block in network.blocks] == [4 * 16] * 3
    assert [layer[0].in_channels for layer in network.blocks[1].layers] == [32, 48, 64, 80]
    assert [layer[0].dilation[0] for layer in network.blocks[0].layers] == [1, 2, 4, 8]
    assert network.classifier[0].in_channels == 3 * 32
    assert all(m.stride == (1, 1, 1) for m in network.modules() if isinstance(m, nn.Conv3d))


def test_fdfcn_embeds_every_block_in_the_prediction():
    network = build_network("fdfcn", width=4).eval()
    with torch.no_grad():
        y = network.stem(torch.randn(1, 1, 5, 6, 7, generator=torch.Generator().manual_seed(0)))
        embedded = []
        for block in network.blocks:
            first = block.layers[0](y)
            second = block.layers[1](torch.cat([y, first], 1))
            third = block.layers[2](torch.cat([y, first, second], 1))
            fourth = block.layers[3](torch.cat([y, first, second, third], 1))
            y = block.connect(torch.cat([first, second, third, fourth], 1))
            embedded.append(y)
        x = torch.randn(1, 1, 5, 6, 7, generator=torch.Generator().manual_seed(0))
        assert torch.equal(network(x), network.head(network.classifier(torch.cat(embedded, 1))))


def test_deep_supervision_adds_two_heads_and_changes_nothing_else():
    """Heads of D2 and D3 in training, at the input's size; in evaluation the network is the one without them."""
    torch.manual_seed(0)
    deep = build_network("covidsegnet", width=4, deep_supervision=2)
    bare = build_network("covidsegnet", width=4)
    bare.load_state_dict({name: value for name, value in deep.state_dict().items() if "deep_heads" not in name})
    assert [(head.in_channels, head.out_channels) for head in deep.deep_heads] == [(8, 2), (16, 2)]
    x = torch.randn(2, 1, 32, 16, 16)
    heads = deep(x)
    assert [tuple(logits.shape) for logits in heads] == [(2, 2, 32, 16, 16)] * 3
    assert torch.equal(heads[0], bare(x))
    sum(logits.square().mean() for logits in heads).backward()
    assert all(parameter.grad is not None for parameter in deep.parameters())
    assert torch.equal(deep.eval()(x), bare.eval()(x))


def test_the_deep_heads_sit_on_the_decoder_from_the_top():
    network = build_network("covidsegnet", width=4, deep_supervision=2)
    seen = []
    for head in network.deep_heads:
        head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape[1:])))
    network(torch.randn(1, 1, 16, 32, 32))
    assert seen == [(8, 8, 16, 16), (16, 4, 8, 8)]


def test_instance_norm_takes_the_place_of_every_batch_norm():
    """Samples of a batch do not meet: each comes out as it does alone, in training as in evaluation."""
    torch.manual_seed(0)
    network = build_network("covidsegnet", width=4, norm="instance")
    batch = build_network("covidsegnet", width=4)
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    norms = [m for m in network.modules() if isinstance(m, nn.InstanceNorm3d)]
    assert len(norms) == len([m for m in batch.modules() if isinstance(m, nn.BatchNorm3d)])
    assert all(norm.affine and not norm.track_running_stats for norm in norms)
    x = torch.randn(2, 1, 32, 32, 32)
    together, alone = network(x), torch.cat([network(x[:1]), network(x[1:])])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(network.eval()(x), together, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"deep_supervision": 3}, {"deep_supervision": -1}, {"norm": "layer"}])
def test_what_is_no_choice_beyond_the_paper_is_refused(wrong):
    with pytest.raises((BadInput, ValueError), match=f"{next(iter(wrong))} is one of"):
        build_network("covidsegnet", width=4, **wrong)
