"""Feature variation (Yan et al. 2020, arXiv:2004.10987v2, III-B, Fig. 3) and its branches, which are gates on features.

The rows of Table II are the same block with other branches: CAB and CEB keep {contrast, identity}, PSB keeps
{position, identity}, FV keeps all three. The capacity control is FV with `gated=False`.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from covidseg.blocks.conv import ConvBNReLU


class Branch(nn.Module):
    """x -> gate(x) * x, with `gate(x)` in [0, 1] and of a shape that broadcasts over x (B, C, D, H, W)."""

    def gate(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x


class ContrastEnhancement(Branch):
    """CEB, eq. (2)-(3): F_g = sigmoid(Cov1(ReLU(Cov3(GAP(x))))), one number per sample, the "window" of the features.

    The paper leaves three points open. Cov3 acts on a map of 1 x 1 x 1, so that 26 of its 27 taps only ever see
    padding: `kernel_size=1` drops them. `bottleneck` narrows the hidden layer to C / 2. There is no batch norm
    inside, against the paper's general rule: over a 1 x 1 x 1 map at batch 2 it returns +-1 whatever comes in, and at
    batch 1 it is an error. Raises `ValueError` for a `kernel_size` that is no odd whole number from 1 on.
    """

    def __init__(self, channels: int, kernel_size: int = 3, bottleneck: bool = False):
        super().__init__()
        if isinstance(kernel_size, bool) or not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is an odd whole number from 1 on, not {kernel_size!r}")
        hidden = max(channels // 2, 1) if bottleneck else channels
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(channels, hidden, kernel_size, padding=kernel_size // 2),
            nn.ReLU(inplace=True),
            nn.Conv3d(hidden, self.gates(channels), 1),
            nn.Sigmoid(),
        )

    @staticmethod
    def gates(channels: int) -> int:
        """How many numbers scale one sample of `channels` channels."""
        return 1

    def gate(self, x: Tensor) -> Tensor:
        """(B, gates, 1, 1, 1)"""
        return self.excite(x)


class ChannelAttention(ContrastEnhancement):
    """CAB, a row of Table II without an equation: here CEB with one number per channel instead of one per sample."""

    @staticmethod
    def gates(channels: int) -> int:
        return channels


class PositionSensitive(Branch):
    """PSB, eq. (4): A = sigmoid(Cov3(ReLU(BN(Cov3(x))))), one number per voxel and channel ("same size as input")."""

    def __init__(self, channels: int):
        super().__init__()
        self.attend = nn.Sequential(
            ConvBNReLU(channels, channels),
            nn.Conv3d(channels, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def gate(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W)"""
        return self.attend(x)


class FeatureVariation(nn.Module):
    """FV, eq. (1): x + Cov3(concat(C(v), P(v), v)) with v = Cov1(x); Cov1 and Cov3 are convolution, batch norm, ReLU.

    `contrast` and `position` make the branches C and P, called with the channel count; None leaves a branch out.
    `gated=False` fixes every gate to 1 and keeps every parameter: the gates' parameters get gradients of zero, not
    none, because distributed training waits for each of them.
    """

    def __init__(
        self,
        channels: int,
        contrast: Callable[[int], Branch] | None = ContrastEnhancement,
        position: Callable[[int], Branch] | None = PositionSensitive,
        gated: bool = True,
    ):
        super().__init__()
        self.gated = gated
        self.cov1 = ConvBNReLU(channels, channels, kernel_size=1)
        self.branches = nn.ModuleDict()
        if contrast is not None:
            self.branches["contrast"] = contrast(channels)
        if position is not None:
            self.branches["position"] = position(channels)
        self.cov3 = ConvBNReLU((len(self.branches) + 1) * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        v = self.cov1(x)
        apply = _gate if self.gated else _gate_of_one
        parts = [apply(cast(Branch, branch), v) for branch in self.branches.values()]
        return x + self.cov3(torch.cat([*parts, v], dim=1))


def _gate(branch: Branch, v: Tensor) -> Tensor:
    return branch(v)


def _gate_of_one(branch: Branch, v: Tensor) -> Tensor:
    return v + 0.0 * sum(parameter.sum() for parameter in branch.parameters())
