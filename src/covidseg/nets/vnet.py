"""V-Net (Milletari et al. 2016, arXiv:1606.04797).

5 x 5 x 5 convolutions with PReLU in residual stages; 2 x 2 x 2 stride-2 convolutions down and up, each with PReLU;
16, 32, 64, 128, 256 channels; 1, 2, 3, 3, 3 convolutions per stage down, 3, 3, 2, 1 up. A stage adds its input to the
output of its last convolution; in the decoder that input is the concatenation of the up-sampled features and the
skip. 1 x 1 x 1 head. Differs from the paper: `batch_norm=True` normalises after each convolution (the paper has none,
and at the learning rate of this suite's protocol training needs it), and the two slots, empty by default: `variation`
closes the four upper encoder stages before the skip, `pyramid` closes the bottom.
"""

from typing import Any

import torch
from torch import Tensor, nn

from covidseg.nets.network import SegmentationNetwork, Slot, filled

KERNEL = 5


class VNet(SegmentationNetwork):
    """`width` is the first stage's channel count. 65.2 M parameters without batch norm at the paper's width of 16.

    Raises `ValueError` when `width` is less than `in_channels`: the first stage adds the image to its own channels.
    """

    stride = 16
    encoder_parts = ("encoder.", "variation.", "down.", "pyramid.")
    kernel_size = KERNEL

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 16,
        variation: Slot = nn.Identity,
        pyramid: Slot = nn.Identity,
        batch_norm: bool = True,
        checkpoint_activations: bool = False,
    ):
        super().__init__(in_channels, out_channels, width, checkpoint_activations)
        if width < in_channels:
            raise ValueError(f"width is at least in_channels={in_channels} in {type(self).__name__}, not {width}")
        *upper, bottom = widths = [width * 2**level for level in range(5)]
        self.encoder = nn.ModuleList(
            Stage(before, channels, convolutions, batch_norm)
            for before, channels, convolutions in zip([in_channels, *widths[1:]], widths, (1, 2, 3, 3, 3), strict=True)
        )
        self.variation = nn.ModuleList(map(variation, upper))
        self.down = nn.ModuleList(
            _scaling(nn.Conv3d, before, after, batch_norm) for before, after in zip(upper, widths[1:], strict=True)
        )
        self.pyramid = filled(pyramid, bottom)
        # A decoder stage works on the concatenation: the skip's channels and as many up-sampled ones.
        self.decoder = nn.ModuleList(
            DecoderStage(before, skip, convolutions, batch_norm)
            for before, skip, convolutions in zip(
                [bottom, *(2 * channels for channels in upper[:0:-1])], upper[::-1], (3, 3, 2, 1), strict=True
            )
        )
        self.head = nn.Conv3d(2 * width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        skips = []
        for stage, variation, down in zip(self.encoder[:-1], self.variation, self.down, strict=True):
            x = self.run(stage, x)
            x = self.run(variation, x)  # (B, width * 2**level, D / 2**level, ...)
            skips.append(x)
            x = self.run(down, x)
        x = self.run(self.encoder[-1], x)
        x = self.run(self.pyramid, x)  # (B, 16 * width, D / 16, H / 16, W / 16)
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            x = self.run(stage, x, skip)
        return self.head(x)


class Stage(nn.Module):
    """Convolutions with PReLU; x is added before the last PReLU. An x of fewer channels (the image) is repeated."""

    def __init__(self, in_channels: int, channels: int, convolutions: int, batch_norm: bool):
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(convolutions):
            layers.append(nn.Conv3d(channels if index else in_channels, channels, KERNEL, padding=KERNEL // 2))
            layers += _norm(channels, batch_norm)
            if index < convolutions - 1:
                layers.append(nn.PReLU(channels))
        self.convolutions = nn.Sequential(*layers)
        self.activation = nn.PReLU(channels)
        self.channels = channels
        self.repeats = -(-channels // in_channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = x.repeat(1, self.repeats, 1, 1, 1)[:, : self.channels] if self.repeats > 1 else x
        return self.activation(self.convolutions(x) + residual)


class DecoderStage(nn.Module):
    """Deconvolution to the channels of the skip, concatenation with it, residual stage on the concatenation."""

    def __init__(self, in_channels: int, skip_channels: int, convolutions: int, batch_norm: bool):
        super().__init__()
        self.up = _scaling(nn.ConvTranspose3d, in_channels, skip_channels, batch_norm)
        self.stage = Stage(2 * skip_channels, 2 * skip_channels, convolutions, batch_norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.stage(torch.cat([self.up(x), skip], dim=1))


def _scaling(convolution: Any, in_channels: int, out_channels: int, batch_norm: bool) -> nn.Sequential:
    return nn.Sequential(
        convolution(in_channels, out_channels, 2, stride=2), *_norm(out_channels, batch_norm), nn.PReLU(out_channels)
    )


def _norm(channels: int, batch_norm: bool) -> list[nn.Module]:
    return [nn.BatchNorm3d(channels)] if batch_norm else []
