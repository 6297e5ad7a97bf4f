"""The convolutions of a network, each of its kinds and sizes once, and what a device makes of them."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

_KINDS = (nn.Conv3d, nn.ConvTranspose3d)
_SLOW = ("Slow", "Depthwise")  # in the names of torch's own kernels, which stand in where no library takes the work


@dataclass(frozen=True)
class Convolution:
    """One convolution without its weights; `input_shape` is (B, C, D, H, W)."""

    transposed: bool
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    input_shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """In short, as "3 x 3 x 3, 64 -> 128, / 2, of 2 x 64 x 128 x 128"."""
        kernel = " x ".join(map(str, self.kernel))
        batch, channels, *size = self.input_shape
        more = [f"{'x' if self.transposed else '/'} {max(self.stride)}"] if max(self.stride) > 1 else []
        more += [f"dilated {max(self.dilation)}"] if max(self.dilation) > 1 else []
        more += [f"{self.groups} groups"] if self.groups > 1 else []
        return ", ".join(
            [kernel, f"{channels} -> {self.out_channels}", *more, f"{batch} of {'x'.join(map(str, size))}"]
        )

    @property
    def multiply_adds(self) -> int:
        """Of the forward pass."""
        weights = math.prod(self.kernel) * self.input_shape[1] * self.out_channels // self.groups
        places = self.input_shape[2:] if self.transposed else self._output_size
        return self.input_shape[0] * weights * math.prod(places)

    @property
    def _output_size(self) -> tuple[int, ...]:
        sizes = zip(self.input_shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * pad - far * (k - 1) - 1) // step + 1 for n, k, step, pad, far in sizes)

    def module(self) -> nn.Module:
        """With random weights; without a bias, which is no part of the work."""
        kind: Any = nn.ConvTranspose3d if self.transposed else nn.Conv3d
        more = {"output_padding": self.output_padding} if self.transposed else {}
        channels = self.input_shape[1], self.out_channels
        own = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return cast(nn.Module, kind(*channels, self.kernel, bias=False, **own, **more))


def convolutions(network: nn.Module, batch_size: int, size_zyx: Sequence[int]) -> Counter[Convolution]:
    """How often each comes in a forward pass of `network`, which lives on the meta device."""
    found: Counter[Convolution] = Counter()

    def note(module: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        one = cast(Any, module)
        padding = one.padding if isinstance(one.padding, tuple) else _same(one)
        found[
            Convolution(
                isinstance(one, nn.ConvTranspose3d),
                one.out_channels,
                one.kernel_size,
                one.stride,
                padding,
                one.output_padding,
                one.dilation,
                one.groups,
                tuple(given[0].shape),
            )
        ] += 1

    handles = [part.register_forward_hook(note) for part in network.modules() if isinstance(part, _KINDS)]
    with torch.no_grad():
        network(torch.empty(batch_size, cast(int, network.in_channels), *size_zyx, device="meta"))
    for handle in handles:
        handle.remove()
    return found


def _same(module: Any) -> tuple[int, ...]:
    """Padding in numbers where the module names it."""
    if module.padding == "valid":
        return (0, 0, 0)
    return tuple(far * (k - 1) // 2 for far, k in zip(module.dilation, module.kernel_size, strict=True))


@dataclass(frozen=True)
class Trial:
    """What came of one convolution: seconds of a forward and a backward pass, and how far off the values are."""

    backend: str  # torch's name for who computes it: Cudnn, Mkldnn, Slow3d, ...
    seconds: float
    error: float  # of output and gradients, relative to float32 (without TF32), the largest
    multiply_adds: int

    @property
    def teraflops(self) -> float:
        """10^12 floating-point operations a second; the backward pass is twice the forward one."""
        return 6 * self.multiply_adds / self.seconds / 1e12

    @property
    def is_slow(self) -> bool:
        """Whether no library for convolutions took it."""
        return any(word in self.backend for word in _SLOW)


def attempt(
    one: Convolution,
    device: torch.device,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.channels_last_3d,
    timed: Callable[[Callable[[], Any]], float] | None = None,
) -> Trial:
    """Compute it once in float32 and, in `dtype`, for value and for time (`timed` gives seconds of a run)."""
    torch.manual_seed(0)
    module = one.module().to(device)
    image = torch.randn(one.input_shape, device=device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
        exact = _passes(module, image.to(dtype).float(), dtype)
    module = module.to(dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]
    given = image.to(dtype).contiguous(memory_format=memory_format)
    found = _passes(module, given, dtype)
    error = max(_off(mine, right) for mine, right in zip(found, exact, strict=True))
    del exact, found
    seconds = (timed or _seconds)(lambda: _passes(module, given, dtype))
    return Trial(_backend(one, module, given), seconds, error, one.multiply_adds)


def _passes(module: nn.Module, image: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Output, and gradients of image and weights for an output gradient of its own values.

    The weights are those of `dtype`, also where the passes are in float32.
    """
    image = image.detach().requires_grad_()
    weight = cast(Tensor, module.weight)
    weight.data.copy_(weight.data.to(dtype))
    output = module(image)
    gradients = torch.autograd.grad(output, (image, weight), output.detach())
    return (output.detach(), *gradients)


def _off(mine: Tensor, right: Tensor) -> float:
    return float((mine.float() - right.float()).norm() / right.float().norm())


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _backend(one: Convolution, module: nn.Module, image: Tensor) -> str:
    places = (list(one.stride), list(one.padding), list(one.dilation), one.transposed, list(one.output_padding))
    chosen = torch._C._select_conv_backend(image, cast(Tensor, module.weight), None, *places, one.groups, None)
    return str(chosen).rpartition(".")[2]
