"""3D U-Net (Cicek et al. 2016, arXiv:1606.06650).

Four levels of two 3 x 3 x 3 convolutions, each with batch norm before the ReLU; the channels double before the pool,
not after it: 32-64, 64-128, 128-256, 256-512. 2 x 2 x 2 max-pool down; 2 x 2 x 2 up-convolution that keeps its
channels, concatenation, 256-256, 128-128, 64-64; 1 x 1 x 1 head. Differs from the paper: padded convolutions (the
paper's are valid, and crop the skips), and the two slots, empty by default: `variation` closes the three upper
encoder levels before the skip, `pyramid` closes the bottom.
"""

import torch
from torch import Tensor, nn

from covidseg.blocks.conv import ConvBNReLU
from covidseg.nets.network import SegmentationNetwork, Slot, filled


class UNet3D(SegmentationNetwork):
    """`width` is the channel count of the first convolution, 32 in the paper.

    19,069,955 parameters with 3 channels in and out, batch norm not counted, as the paper reports: hence the biases
    before batch norm, and none in the up-convolutions.
    """

    stride = 8
    encoder_parts = ("encoder.", "variation.", "pyramid.")

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 32,
        variation: Slot = nn.Identity,
        pyramid: Slot = nn.Identity,
        checkpoint_activations: bool = False,
    ):
        super().__init__(in_channels, out_channels, width, checkpoint_activations)
        *upper, bottom = [width * 2 ** (level + 1) for level in range(4)]
        self.encoder = nn.ModuleList(
            nn.Sequential(_convolution(before, channels // 2), _convolution(channels // 2, channels))
            for before, channels in zip([in_channels, *upper], [*upper, bottom], strict=True)
        )
        self.variation = nn.ModuleList(map(variation, upper))
        self.pool = nn.MaxPool3d(2)
        self.pyramid = filled(pyramid, bottom)
        self.decoder = nn.ModuleList(map(DecoderStage, [bottom, *upper[:0:-1]], upper[::-1]))
        self.head = nn.Conv3d(upper[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        skips = []
        for stage, variation in zip(self.encoder[:-1], self.variation, strict=True):
            x = self.run(stage, x)
            x = self.run(variation, x)  # (B, width * 2**(level + 1), D / 2**level, ...)
            skips.append(x)
            x = self.pool(x)
        x = self.run(self.encoder[-1], x)
        x = self.run(self.pyramid, x)  # (B, 16 * width, D / 8, H / 8, W / 8)
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            x = self.run(stage, x, skip)
        return self.head(x)


class DecoderStage(nn.Module):
    """Up-convolution, concatenation with the skip, two convolutions to the skip's channels."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, in_channels, 2, stride=2, bias=False)
        self.convolutions = nn.Sequential(
            _convolution(in_channels + out_channels, out_channels), _convolution(out_channels, out_channels)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convolutions(torch.cat([self.up(x), skip], dim=1))


def _convolution(in_channels: int, out_channels: int) -> ConvBNReLU:
    return ConvBNReLU(in_channels, out_channels, bias=True)
