"""What all networks share: the rule for input sizes, and recomputing activations in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from covidseg.system.errors import BadInput

Slot = Callable[[int], nn.Module]  # makes a block for so many channels; torch.nn.Identity leaves the slot empty


class SegmentationNetwork(nn.Module):
    """Base of the networks. `stride` is what every side of an input must be a multiple of."""

    stride: int
    kernel_size = 3  # of the widest convolution
    encoder_parts: tuple[str, ...] = ()  # how the names of the encoder's weights begin; empty: not known

    def __init__(self, in_channels: int, out_channels: int, width: int, checkpoint_activations: bool):
        super().__init__()
        for name, number in (("in_channels", in_channels), ("out_channels", out_channels), ("width", width)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} is a whole number from 1 on, not {number!r}")
        self.in_channels = in_channels
        self.checkpoint_activations = checkpoint_activations

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` unless x is (B, in_channels, D, H, W) and `stride` divides its sides.

        Raise `BadInput` for training in bfloat16 on a CPU with maps thinner than a kernel. With torch 2.13, oneDNN
        fills such a convolution's weight gradient with whatever lay in memory, and nothing complains.
        """
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise ValueError(f"{self.name} takes (B, {self.in_channels}, D, H, W), got {tuple(x.shape)}")
        size = x.shape[2:]
        if any(side < 1 or side % self.stride for side in size):
            found = " x ".join(str(side) for side in size)
            padded = " x ".join(str(max(-(-side // self.stride), 1) * self.stride) for side in size)
            raise ValueError(f"{self.name} takes multiples of {self.stride} voxels: pad {found} to {padded}")
        low_precision = x.device.type == "cpu" and (x.dtype is torch.bfloat16 or torch.is_autocast_enabled("cpu"))
        needed = self.kernel_size * self.stride
        if self.training and torch.is_grad_enabled() and low_precision and min(size) < needed:
            raise BadInput(
                "trainer.precision",
                f"bfloat16 gradients of {self.name} on a CPU are wrong below {needed} voxels a side",
                "32-true, or a GPU",
            )

    def run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """`module(*inputs)`; `checkpoint_activations` keeps the inputs alone and recomputes the rest for backward."""
        if self.checkpoint_activations and self.training and torch.is_grad_enabled():
            if torch.compiler.is_compiling():  # which refuses a context, and recomputes no update of a buffer
                return checkpoint(module, *inputs, use_reentrant=False)
            return checkpoint(module, *inputs, use_reentrant=False, context_fn=lambda: _contexts(module))
        return module(*inputs)


def filled(slot: Slot, channels: int) -> nn.Module:
    """The block that a slot makes. Raises `ValueError` for a slot that holds a block already, or makes none."""
    block = slot(channels)
    if not isinstance(block, nn.Module):
        raise ValueError(f"a slot makes a block of {channels} channels, and this one made {block!r}")
    return block


def laid_out(image: Tensor, memory_format: torch.memory_format) -> Tensor:
    """`image` (B, C, D, H, W) in `memory_format`, also where it has one channel.

    Such a tensor is in both formats at once, and torch then goes by its strides: with those of a contiguous one a
    1 x 1 x 1 convolution of channels-last weights gives contiguous maps, which all that follows has to turn around.
    """
    image = image.contiguous(memory_format=memory_format)
    if image.shape[1] > 1 or memory_format is not torch.channels_last_3d:
        return image
    strides = list(image.stride())
    strides[1] = 1
    return image.as_strided(image.shape, strides)


def memory_format(network: nn.Module) -> torch.memory_format:
    """That of the convolutions of `network`, channels last or contiguous."""
    last = torch.channels_last_3d
    maps = (weight for weight in network.parameters() if weight.ndim == 5 and not weight.is_contiguous())
    return last if any(weight.is_contiguous(memory_format=last) for weight in maps) else torch.contiguous_format


def use_instance_norm(network: nn.Module) -> None:
    """Put instance norm with learned scale and shift in the place of each batch norm; draws no random number."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(module, name, nn.InstanceNorm3d(child.num_features, eps=child.eps, affine=True))


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _still_statistics(module)


@contextmanager
def _still_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norm still: they took in this batch in the forward pass already.

    Momentum 0 rather than `track_running_stats=False`, which saves fewer tensors than the forward pass did: an error.
    The count of batches goes on in a copy: `SyncBatchNorm` refuses to work without one.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
