"""Convolutions of a single window on a CPU, kept in oneDNN.

For one sample of which channels x depth x height is at most 20480, torch 2 (`use_mkldnn` in its Convolution.cpp) turns
to `slow_conv3d`, its own loop over columns: on narrow networks that is several times slower than oneDNN, which it takes
for two samples or larger maps. The same operator is called here by its name; results differ in the last digits.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_CONV3D = torch.ops.aten.conv3d.default
_ONEDNN = torch.ops.aten.mkldnn_convolution.default
_DEFAULTS: tuple[Any, ...] = (None, [1, 1, 1], [0, 0, 0], [1, 1, 1], 1)  # of bias, stride, padding, dilation, groups


class OneDnnConvolutions(TorchDispatchMode):
    """Sends 3D convolutions of one float32 sample to oneDNN, and leaves all else as it is."""

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is _CONV3D and not kwargs and len(args[0]) == 1 and args[0].dtype is torch.float32:
            image, weight, bias, stride, padding, dilation, groups = [*args, *_DEFAULTS[len(args) - 2 :]]
            return _ONEDNN(image, weight, bias, padding, stride, dilation, groups)
        return function(*args, **(kwargs or {}))


def single_windows(network: nn.Module, device: torch.device) -> AbstractContextManager[Any]:
    """Around a network's passes in inference mode: oneDNN on a CPU that has it, nothing elsewhere.

    A compiled network has chosen its kernels, and cannot be looked into.
    """
    is_compiled = getattr(network, "_compiled_call_impl", None) is not None
    if device.type != "cpu" or is_compiled or not torch.backends.mkldnn.is_available():
        return nullcontext()
    return OneDnnConvolutions()
