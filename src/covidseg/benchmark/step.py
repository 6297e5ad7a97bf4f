"""The suite `step`: forward, loss and backward of the same network and patch, our way and the peers'."""

from collections.abc import Callable, Mapping

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from covidseg.benchmark.contest import OTHER_OF_OURS, OURS, USUAL, Contender, Contest
from covidseg.config.build import build_network
from covidseg.training.losses import DiceCrossEntropy

_CLOSE = 1e-3  # relative difference of the logits from those of double precision


def contests(cfg: DictConfig) -> list[Contest]:
    """One for each network that is asked for."""
    options = cfg.step
    return [_contest(name, options) for name in options.models]


def _contest(name: str, options: DictConfig) -> Contest:
    size = tuple(options.patch_size_zyx)
    image = torch.rand(options.batch_size, 1, *size, generator=torch.Generator().manual_seed(0))
    target = (image[:, 0] > 0.9).long()
    channels_last, contiguous = torch.channels_last_3d, torch.contiguous_format

    def step(
        memory_format: torch.memory_format, dtype: torch.dtype = torch.float32
    ) -> Callable[[], Callable[[], tuple[Tensor, Tensor]]]:
        def make() -> Callable[[], tuple[Tensor, Tensor]]:
            network, loss = _network(name, options).to(memory_format=memory_format), DiceCrossEntropy(0.5, 0.5)  # type: ignore[call-overload]
            given = image.contiguous(memory_format=memory_format)
            return lambda: _step(network, loss, given, target, dtype)

        return make

    ways = [
        Contender("covidseg (channels last)", OURS, step(channels_last)),
        Contender("the peers' memory layout", USUAL, step(contiguous)),
        Contender("covidseg, bfloat16", OTHER_OF_OURS, step(channels_last, torch.bfloat16)),
    ]
    z, y, x = size
    title = f"step: {name} of width {options.width}, {options.batch_size} patches of {x} x {y} x {z}"
    exact = _step(_network(name, options).double(), DiceCrossEntropy(0.5, 0.5), image.double(), target)

    def check(found: Mapping[str, tuple[Tensor, Tensor]]) -> str:
        off = {way: [_off(mine, right) for mine, right in zip(both, exact, strict=True)] for way, both in found.items()}
        if max(logits for way, (logits, _) in off.items() if "bfloat16" not in way) > _CLOSE:
            raise AssertionError(f"logits and gradients differ from those of double precision by {off}")
        told = "; ".join(f"{way} {logits:.0e}, {gradient:.0e}" for way, (logits, gradient) in off.items())
        return f"Relative difference of logits and of the largest layer's gradient from double precision: {told}."

    return Contest(title, ways, 1, options.rounds, check)


def _network(name: str, options: DictConfig) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name, width=options.width, in_channels=1, out_channels=2).train()


def _step(
    network: nn.Module, loss: nn.Module, image: Tensor, target: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the largest layer's weights."""
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        logits = network(image)
    loss(logits, target).backward()
    largest = max(network.parameters(), key=lambda weights: weights.numel())
    assert largest.grad is not None
    return logits.detach(), largest.grad.detach().clone()


def _off(mine: Tensor, right: Tensor) -> float:
    return float((mine.double() - right).norm() / right.norm())
