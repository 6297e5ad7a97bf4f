"""Networks of other libraries, such as MONAI's, on this suite's terms: one YAML file each, and no code."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.instancenorm import _InstanceNorm

from covidseg.nets.network import SegmentationNetwork
from covidseg.system.errors import BadInput

Multiples = Mapping[str, float | Sequence[float]]


class ExternalNetwork(SegmentationNetwork):
    """The network that `constructor` makes, called with `in_channels`, `out_channels` and what grows with `width`.

    `multiples`: the constructor's arguments that are multiples of `width`, as `{filters: [1, 2, 4]}`. `stride`: what
    every side of an input must be a multiple of, and `kernel_size` that of its widest convolution. Where the network is
    trained with deep supervision it returns several logits; maps that are smaller than the input are brought to its
    size, so that each is (B, out_channels, D, H, W) and meets the same loss as any other network's.
    """

    def __init__(
        self,
        constructor: Callable[..., nn.Module],
        stride: int,
        multiples: Multiples,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 32,
        kernel_size: int = 3,
    ):
        super().__init__(in_channels, out_channels, width, checkpoint_activations=False)
        self.stride, self.kernel_size = stride, kernel_size
        widths = {name: _times(width, factor) for name, factor in multiples.items()}
        try:
            self.network = constructor(in_channels=in_channels, out_channels=out_channels, **widths)
        except ValueError as error:
            raise ValueError(f"with width {width}, that is {widths}: {error}") from error

    @property
    def name(self) -> str:
        return type(self.network).__name__

    def check(self, x: Tensor) -> None:
        """As of any network; and `BadInput` where instance norm would have one voxel to take the mean of."""
        super().check(x)
        if x.shape[2:].numel() == self.stride**3 and any(isinstance(m, _InstanceNorm) for m in self.modules()):
            side = self.stride
            wrong = f"{side} x {side} x {side} leave {self.name} one voxel at its bottom, and instance norm needs two"
            raise BadInput("the patch or window", wrong, f"{2 * side} voxels on one side at least")

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self.check(x)
        found = self.network(x)
        if isinstance(found, Tensor):
            if found.ndim == x.ndim:
                return found
            found = found.unbind(1)  # heads of one size, stacked
        return [
            head if head.shape[2:] == x.shape[2:] else F.interpolate(head, x.shape[2:], mode="trilinear")
            for head in found
        ]


def _times(width: int, factor: float | Sequence[float]) -> int | list[int]:
    if isinstance(factor, Sequence):
        return [round(width * one) for one in factor]
    return round(width * factor)
