"""UNet++ (Zhou et al. 2018, arXiv:1807.10165) with 3D convolutions.

Nodes X(i, j) on five levels i. X(i, 0) is the encoder; X(i, j) joins X(i, 0), ..., X(i, j - 1) with X(i + 1, j - 1)
up-sampled, eq. (1) of that paper. Two convolutions per node, 2 x 2 x 2 max-pool down, 2 x 2 x 2 stride-2
deconvolution up, 32, 64, 128, 256, 512 channels, one 1 x 1 x 1 head on each of X(0, 1..4) for deep supervision.
The paper's text leaves the channels of the deconvolutions open. As in MONAI, they halve, except on the way to level 0.

Differs from the paper: 3D, batch norm after each convolution, prediction by X(0, 4) alone in eval mode (the paper's
"accurate mode" averages the four heads), and the two slots, empty by default: `variation` closes X(0..3, 0), `pyramid`
closes X(4, 0).
"""

import torch
from torch import Tensor, nn

from covidseg.blocks.conv import ConvBNReLU
from covidseg.nets.network import SegmentationNetwork, Slot, filled

DEPTH = 4


class UNetPlusPlus(SegmentationNetwork):
    """`width` is the first level's channel count.

    In training mode the result is the list of the four heads' logits, X(0, 4) last, for a loss that averages over them;
    in eval mode it is X(0, 4)'s alone, and `deep_supervision=False` builds that head only.
    """

    stride = 2**DEPTH
    encoder_parts = ("encoder.", "variation.")

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 32,
        variation: Slot = nn.Identity,
        pyramid: Slot = nn.Identity,
        deep_supervision: bool = True,
        checkpoint_activations: bool = False,
    ):
        super().__init__(in_channels, out_channels, width, checkpoint_activations)
        widths = [width * 2**level for level in range(DEPTH + 1)]
        self.encoder = nn.ModuleList(map(_double_convolution, [in_channels, *widths[:-1]], widths))
        self.variation = nn.ModuleList([*map(variation, widths[:-1]), filled(pyramid, widths[-1])])
        self.pool = nn.MaxPool3d(2)
        self.nodes = nn.ModuleDict(
            {_name(i, j): Node(widths[i + 1], widths[i], skips=j, up=widths[max(i, 1)]) for i, j in _nested()}
        )
        supervised = range(1, DEPTH + 1) if deep_supervision else (DEPTH,)
        self.heads = nn.ModuleDict({_name(0, j): nn.Conv3d(width, out_channels, 1) for j in supervised})

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self.check(x)
        rows: list[list[Tensor]] = []  # rows[i][j] is X(i, j): (B, width * 2**i, D / 2**i, H / 2**i, W / 2**i)
        for stage, variation in zip(self.encoder, self.variation, strict=True):
            x = self.run(stage, self.pool(x) if rows else x)
            x = self.run(variation, x)
            rows.append([x])
        for i, j in _nested():
            rows[i].append(self.run(self.nodes[_name(i, j)], rows[i + 1][j - 1], *rows[i]))
        if self.training and len(self.heads) > 1:
            return [self.heads[_name(0, j)](rows[0][j]) for j in range(1, DEPTH + 1)]
        return self.heads[_name(0, DEPTH)](rows[0][DEPTH])


class Node(nn.Module):
    """X(i, j) from X(i + 1, j - 1), brought to `up` channels by the deconvolution, and the `skips` nodes before it."""

    def __init__(self, below: int, channels: int, skips: int, up: int):
        super().__init__()
        self.up = nn.ConvTranspose3d(below, up, 2, stride=2)
        self.convolutions = _double_convolution(skips * channels + up, channels)

    def forward(self, below: Tensor, *skips: Tensor) -> Tensor:
        return self.convolutions(torch.cat([*skips, self.up(below)], dim=1))


def _nested() -> list[tuple[int, int]]:
    """(i, j) of the nodes behind the encoder, column by column, so that each finds its inputs ready."""
    return [(i, j) for j in range(1, DEPTH + 1) for i in range(DEPTH + 1 - j)]


def _name(i: int, j: int) -> str:
    return f"x{i}{j}"


def _double_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        ConvBNReLU(in_channels, out_channels, bias=True), ConvBNReLU(out_channels, out_channels, bias=True)
    )
