"""3D counterpart of FCN-8s (Long et al. 2015, arXiv:1411.4038) on the plan of VGG16.

Five stages of 2, 2, 3, 3, 3 convolutions with 64, 128, 256, 512, 512 channels, each closed by a max-pool; two
convolutional "fully connected" layers; class scores of the end, of pool4 and of pool3, fused by 2 x up-sampling and
addition; 8 x up-sampling to the input.

Differs from the paper: 3 x 3 x 3 kernels; the fully connected layers are 3 x 3 x 3 and 1 x 1 x 1 of 1024 channels (a
7 x 7 x 7 one of 4096 would have 719 M weights, and see mostly padding in a training patch of 4 x 4 x 2 positions
there); trained from random weights, hence batch norm, and no dropout; same padding instead of padding by 100 and
cropping. As in the paper, the 2 x up-samplings are learned from a linear interpolation on, and the last one is a
fixed linear interpolation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from covidseg.blocks.conv import ConvBNReLU
from covidseg.nets.network import SegmentationNetwork


class FCN8s(SegmentationNetwork):
    """`width` is the first stage's channel count (64 in VGG16).

    It has no slot for `variation` or `pyramid`: it is no encoder-decoder, its skips carry class scores.
    """

    stride = 32
    encoder_parts = ("stages.",)

    def __init__(
        self, in_channels: int = 1, out_channels: int = 2, width: int = 64, checkpoint_activations: bool = False
    ):
        super().__init__(in_channels, out_channels, width, checkpoint_activations)
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.stages = nn.ModuleList(map(_stage, [in_channels, *widths], widths, (2, 2, 3, 3, 3)))
        self.classifier = nn.Sequential(
            ConvBNReLU(widths[-1], 16 * width), ConvBNReLU(16 * width, 16 * width, kernel_size=1)
        )
        self.score = nn.Conv3d(16 * width, out_channels, 1)
        self.score4 = nn.Conv3d(widths[3], out_channels, 1)
        self.score3 = nn.Conv3d(widths[2], out_channels, 1)
        self.up4 = _doubling(out_channels)
        self.up3 = _doubling(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        pools = []
        for stage in self.stages:
            x = self.run(stage, x)
            pools.append(x)  # (B, ., D / 2, ...) to (B, ., D / 32, ...)
        x = self.score(self.run(self.classifier, x))
        x = self.up4(x) + self.score4(pools[3])  # (B, out, D / 16, H / 16, W / 16)
        x = self.up3(x) + self.score3(pools[2])  # (B, out, D / 8, H / 8, W / 8)
        return F.interpolate(x, scale_factor=8, mode="trilinear")


def _stage(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    layers = [ConvBNReLU(channels if index else in_channels, channels) for index in range(convolutions)]
    return nn.Sequential(*layers, nn.MaxPool3d(2))


def _doubling(channels: int) -> nn.ConvTranspose3d:
    """A stride-2 deconvolution that starts as linear interpolation of each channel by itself."""
    up = nn.ConvTranspose3d(channels, channels, 4, stride=2, padding=1, bias=False)
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    kernel = line[:, None, None] * line[:, None] * line
    with torch.no_grad():
        up.weight.copy_(torch.eye(channels)[:, :, None, None, None] * kernel)
    return up
