"""Atrous pyramids (Yan et al. 2020, arXiv:2004.10987v2, III-C, Fig. 4), nested so that only the fusion differs:

    ASPP     four branches of C / 4 channels, one concatenation, 1 x 1 x 1
    ResASPP  ASPP + the sums of eq. (7)
    PASPP    ResASPP + the pairwise concatenation of eq. (8)

The paper compares ASPP and ResASPP without giving their widths or rates; here all three share those of PASPP (rates
1, 2, 4, 8, no image pooling). Every convolution is convolution, batch norm, ReLU.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from covidseg.blocks.conv import ConvBNReLU

RATES = (1, 2, 4, 8)  # eq. (6): d = 2 ** (t - 1)


class ASPP(nn.Module):
    """Eq. (6): Fd_t = Cov3_d(Cov1_t(x)), t = 1..4; out = Cov1(concat(Fd_1, ..., Fd_4)).

    (B, C, D, H, W) in and out; raises `ValueError` when C is no multiple of 4 from 4 on.
    """

    def __init__(self, channels: int):
        super().__init__()
        if channels < 1 or channels % len(RATES):
            raise ValueError(f"{type(self).__name__} needs a multiple of {len(RATES)} channels, got {channels}")
        quarter = channels // len(RATES)
        self.reduce = nn.ModuleList(ConvBNReLU(channels, quarter, kernel_size=1) for _ in RATES)
        self.atrous = nn.ModuleList(ConvBNReLU(quarter, quarter, dilation=rate) for rate in RATES)
        self.merge = ConvBNReLU(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        inputs = [reduce(x) for reduce in self.reduce]  # Fp_t
        outputs = [atrous(part) for atrous, part in zip(self.atrous, inputs, strict=True)]  # Fd_t
        return self.merge(torch.cat(self.fuse(inputs, outputs), dim=1))

    def fuse(self, inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        """What is concatenated, from the atrous convolutions' inputs and outputs."""
        return outputs


class ResASPP(ASPP):
    """Eq. (7): F'd_t = Fd_t + Fp_1 + Fp_2 (t = 1, 2), Fd_t + Fp_3 + Fp_4 (t = 3, 4); the rest as ASPP.

    Eq. (7) is printed with Fd, the outputs, in place of Fp. The paper's text ("Sum the inputs of two adjacent atrous
    convolution branches"), its caption and the merge-and-run design it cites say the inputs. `paspp_sum="outputs"`
    follows the print.
    """

    def __init__(self, channels: int, paspp_sum: Literal["inputs", "outputs"] = "inputs"):
        super().__init__(channels)
        if paspp_sum not in ("inputs", "outputs"):
            raise ValueError(f"paspp_sum is 'inputs' or 'outputs', not {paspp_sum!r}")
        self.paspp_sum = paspp_sum

    def fuse(self, inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        summands = inputs if self.paspp_sum == "inputs" else outputs
        small, large = summands[0] + summands[1], summands[2] + summands[3]
        return [output + pair for output, pair in zip(outputs, (small, small, large, large), strict=True)]


class PASPP(ResASPP):
    """Eq. (8): F''_1 = Cov1(concat(F'd_1, F'd_2)), F''_2 = Cov1(concat(F'd_3, F'd_4)), of C / 2 channels each.

    Eq. (9): out = Cov1(concat(F''_1, F''_2)). `paspp_sum` as in `ResASPP`.
    """

    def __init__(self, channels: int, paspp_sum: Literal["inputs", "outputs"] = "inputs"):
        super().__init__(channels, paspp_sum)
        half = channels // 2
        self.pairs = nn.ModuleList(ConvBNReLU(half, half, kernel_size=1) for _ in range(2))

    def fuse(self, inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        first, second, third, fourth = super().fuse(inputs, outputs)
        return [
            self.pairs[0](torch.cat([first, second], dim=1)),
            self.pairs[1](torch.cat([third, fourth], dim=1)),
        ]
