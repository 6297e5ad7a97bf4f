"""Convolution units shared by the blocks and the networks. All pad so that stride 1 keeps the size."""

import torch
from torch import Tensor, nn


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm, ReLU: the unit of every convolution of Yan et al. 2020 (IV-C) if nothing else is said.

    `bias=False`: batch norm subtracts any constant that the convolution adds. The networks whose published parameter
    count includes those biases ask for them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = False,
    ):
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv3d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )


class PlainBlock(nn.Sequential):
    """ReLU(BN(conv(ReLU(BN(conv(x)))))) with 3 x 3 x 3 convolutions: a residual block without the addition."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(ConvBNReLU(in_channels, out_channels), ConvBNReLU(out_channels, out_channels))


class ResidualBlock(nn.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))) with 3 x 3 x 3 convolutions (Yan et al. 2020, III-A).

    Where the channels differ, x passes a 1 x 1 x 1 convolution with batch norm.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.body = nn.Sequential(
            ConvBNReLU(in_channels, out_channels),
            nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm3d(out_channels),
        )
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Sequential(nn.Conv3d(in_channels, out_channels, 1, bias=False), nn.BatchNorm3d(out_channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.body(x) + self.shortcut(x))
