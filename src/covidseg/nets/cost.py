"""What a network costs, from shapes alone: on the meta device no weight is made and nothing is computed."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from covidseg.config.build import instantiate


def network_cost(config: Mapping[str, Any], size_zyx: Sequence[int]) -> tuple[int, int]:
    """Parameters of the network that a `model` configuration describes, and multiply-adds for one volume."""
    network = meta_network(config)
    return parameters(network), multiply_adds(network, size_zyx)


def meta_network(config: Mapping[str, Any]) -> nn.Module:
    """The network that a `model` configuration describes, on the meta device."""
    with torch.device("meta"), _RatesOnTheCPU():
        return instantiate(config, "model")


def parameters(network: nn.Module) -> int:
    """The number of trainable numbers."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def multiply_adds(network: nn.Module, size_zyx: Sequence[int]) -> int:
    """Multiply-adds of all convolutions in one prediction; `network` lives on the meta device."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(_volume(network, 1, size_zyx))
    return counter.get_total_flops() // 2


def bytes_for_backward(network: nn.Module, batch_size: int, size_zyx: Sequence[int]) -> int:
    """Bytes that autograd holds between the forward and the backward pass in float32, parameters aside.

    A tensor that several operations need counts once. `network` lives on the meta device. A GPU's peak is higher:
    gradients, optimiser state and the convolutions' workspaces come on top.
    """
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[
        int, Tensor
    ] = {}  # the tensors themselves are held, so that no storage is freed and its address taken again

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        network.train()(_volume(network, batch_size, size_zyx))
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


class _RatesOnTheCPU(TorchFunctionMode):
    """Lets a network read the numbers of a `linspace` while it is made, as SwinUNETR does with its drop rates."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        placed = {"device": "cpu"} if function is torch.linspace else {}
        return function(*args, **placed, **(kwargs or {}))


def _volume(network: nn.Module, batch_size: int, size_zyx: Sequence[int]) -> Tensor:
    channels = cast(int, network.in_channels)
    return torch.empty((batch_size, channels, *size_zyx), device="meta")
