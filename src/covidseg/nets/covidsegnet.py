"""COVID-SegNet (Yan et al. 2020, arXiv:2004.10987v2, III-A and IV-C, Fig. 2).

    E1-E3   residual block, FV block, skip; 3 x 3 x 3 stride-2 convolution that doubles the channels: 64, 128, 256, 512
    E4      PASPP
    D3-D1   2 x 2 x 2 deconvolution of stride 2 that halves the channels, concatenation with the skip, residual block
    head    1 x 1 x 1 convolution to logits (the paper's sigmoid or softmax belongs to the loss)

Without a pyramid E4 is a residual block, so that `variation=none, pyramid=none` is the UNet4 of Table II. Beyond the
paper, and off by default: deep supervision, and instance norm in place of batch norm.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from covidseg.blocks.conv import ConvBNReLU, PlainBlock, ResidualBlock
from covidseg.blocks.pyramid import PASPP
from covidseg.blocks.variation import FeatureVariation
from covidseg.nets.network import SegmentationNetwork, Slot, filled, use_instance_norm


class COVIDSegNet(SegmentationNetwork):
    """`width` is E1's channel count; `variation` and `pyramid` make a block when called with the channel count.

    `variation_position`: the variation closes E1-E3 ("after_block", the text) or opens E2-E4 ("after_down", as those
    who rebuilt Fig. 2 placed it). `downsampling`: "conv", a 3 x 3 x 3 convolution of stride 2, or "maxpool" and then a
    1 x 1 x 1 convolution. `block`: "residual", or "plain" for the same two convolutions without the addition.
    `upsampling_kernel`: 2, in which no two steps of the deconvolution overlap, or 3, as IV-C says of all layers.
    `deep_supervision`: so many of D2 and D3, from the top, have a head of their own, whose logits are brought to the
    input's size; in training the network returns [head, of D2, of D3], and in evaluation the head's alone. `norm`:
    "batch", or "instance" with learned scale and shift.
    """

    stride = 8
    encoder_parts = ("block.", "after_block.", "down.", "after_down.", "context.")

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 64,
        variation: Slot = FeatureVariation,
        pyramid: Slot = PASPP,
        variation_position: Literal["after_block", "after_down"] = "after_block",
        downsampling: Literal["conv", "maxpool"] = "conv",
        block: Literal["residual", "plain"] = "residual",
        upsampling_kernel: Literal[2, 3] = 2,
        deep_supervision: Literal[0, 1, 2] = 0,
        norm: Literal["batch", "instance"] = "batch",
        checkpoint_activations: bool = False,
    ):
        super().__init__(in_channels, out_channels, width, checkpoint_activations)
        for option, value, choices in (
            ("variation_position", variation_position, ("after_block", "after_down")),
            ("downsampling", downsampling, DOWNSAMPLING),
            ("block", block, BLOCKS),
            ("upsampling_kernel", upsampling_kernel, (2, 3)),
            ("deep_supervision", deep_supervision, (0, 1, 2)),
            ("norm", norm, ("batch", "instance")),
        ):
            if value not in choices:
                raise ValueError(f"{option} is one of {', '.join(map(str, choices))}, not {value!r}")
        *upper, bottom = widths = [width * 2**level for level in range(4)]
        closing, opening = (variation, nn.Identity) if variation_position == "after_block" else (nn.Identity, variation)
        make_block = BLOCKS[block]

        self.block = nn.ModuleList(map(make_block, [in_channels, *upper[1:]], upper))
        self.after_block = nn.ModuleList(map(closing, upper))
        self.down = nn.ModuleList(map(DOWNSAMPLING[downsampling], upper, widths[1:]))
        self.after_down = nn.ModuleList(map(opening, widths[1:]))
        context = filled(pyramid, bottom)
        self.context = make_block(bottom, bottom) if isinstance(context, nn.Identity) else context
        self.decoder = nn.ModuleList(
            DecoderStage(2 * channels, channels, make_block, upsampling_kernel) for channels in upper[::-1]
        )
        self.head = nn.Conv3d(width, out_channels, 1)
        self.deep_heads = nn.ModuleList(
            nn.Conv3d(channels, out_channels, 1) for channels in upper[1 : 1 + deep_supervision]
        )
        if norm == "instance":
            use_instance_norm(self)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self.check(x)
        size = x.shape[2:]
        skips = []
        for block, after_block, down, after_down in zip(
            self.block, self.after_block, self.down, self.after_down, strict=True
        ):
            x = self.run(block, x)
            x = self.run(after_block, x)  # (B, width * 2**level, D / 2**level, H / 2**level, W / 2**level)
            skips.append(x)
            x = self.run(down, x)
            x = self.run(after_down, x)
        x = self.run(self.context, x)  # (B, 8 * width, D / 8, H / 8, W / 8)
        decoded = []
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            x = self.run(stage, x, skip)
            decoded.append(x)
        logits = self.head(x)
        if not self.training or not self.deep_heads:
            return logits
        lower = zip(self.deep_heads, decoded[-2::-1], strict=False)  # D2, then D3
        return [logits, *(F.interpolate(head(features), size, mode="trilinear") for head, features in lower)]


class DecoderStage(nn.Module):
    """Deconvolution to the skip's size and channels, concatenation with it, a block back to its channels."""

    def __init__(self, in_channels: int, out_channels: int, make_block: Callable[[int, int], nn.Module], kernel: int):
        super().__init__()
        overlap = kernel - 2  # of two steps; cut off at both ends, so that the size is exactly doubled
        self.up = nn.Sequential(
            nn.ConvTranspose3d(
                in_channels, out_channels, kernel, stride=2, padding=overlap, output_padding=overlap, bias=False
            ),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )
        self.block = make_block(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([self.up(x), skip], dim=1))


def _strided_convolution(in_channels: int, out_channels: int) -> nn.Module:
    return ConvBNReLU(in_channels, out_channels, stride=2)


def _max_pool(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(nn.MaxPool3d(2), ConvBNReLU(in_channels, out_channels, kernel_size=1))


BLOCKS = {"residual": ResidualBlock, "plain": PlainBlock}
DOWNSAMPLING = {"conv": _strided_convolution, "maxpool": _max_pool}
