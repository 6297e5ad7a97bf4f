"""A declared reading of FD-FCN (Yang & Zhang, arXiv:1907.09194), the network that Yan et al. 2020 cite as FCN.

Its text gives no layer table. What it does say, and where it stands here:

    no up-sampling path                              full resolution throughout, stride 1
    dense blocks whose input is not passed on        a block returns what its own layers put out, without its input
    a dense "fully connected" layer in each block    a 1 x 1 x 1 convolution closes the block
    blocks rebuilt for a larger receptive field      the four layers of a block dilate by 1, 2, 4, 8
    intermediate outputs embedded in the prediction  the head sees the outputs of all blocks, through a 1 x 1 x 1 layer

Chosen freely: three blocks, four layers each, 16 channels per layer, batch norm before ReLU after each convolution.
Left out: the spectral coordinates of the patch's position that it feeds beside the image, which the compared networks
do not get either.
"""

import torch
from torch import Tensor, nn

from covidseg.blocks.conv import ConvBNReLU
from covidseg.nets.network import SegmentationNetwork

DILATIONS = (1, 2, 4, 8)
BLOCKS = 3


class FDFCN(SegmentationNetwork):
    """`width` is the channel count of one layer in a dense block.

    It has no slot for `variation` or `pyramid`: there is no encoder stage and no bottom to put them in.
    """

    stride = 1
    encoder_parts = ("stem.", "blocks.")

    def __init__(
        self, in_channels: int = 1, out_channels: int = 2, width: int = 16, checkpoint_activations: bool = False
    ):
        super().__init__(in_channels, out_channels, width, checkpoint_activations)
        self.stem = ConvBNReLU(in_channels, width)
        self.blocks = nn.ModuleList(DenseBlock(2 * width if index else width, width) for index in range(BLOCKS))
        self.classifier = ConvBNReLU(BLOCKS * 2 * width, 4 * width, kernel_size=1)
        self.head = nn.Conv3d(4 * width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        x = self.run(self.stem, x)  # (B, width, D, H, W)
        embedded = []
        for block in self.blocks:
            x = self.run(block, x)  # (B, 2 * width, D, H, W)
            embedded.append(x)
        return self.head(self.run(self.classifier, torch.cat(embedded, dim=1)))


class DenseBlock(nn.Module):
    """Layer k sees the block's input and layers 1..k-1; the block returns a 1 x 1 x 1 layer of its layers' outputs
    alone.
    """

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.layers = nn.ModuleList(
            ConvBNReLU(in_channels + index * width, width, dilation=dilation)
            for index, dilation in enumerate(DILATIONS)
        )
        self.connect = ConvBNReLU(len(DILATIONS) * width, 2 * width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for layer in self.layers:
            outputs.append(layer(torch.cat([x, *outputs], dim=1)))
        return self.connect(torch.cat(outputs, dim=1))
