"""The training loss of section IV-C: soft Dice and cross-entropy, half and half."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DiceCrossEntropy(nn.Module):
    """`dice_weight * (1 - soft Dice) + ce_weight * cross-entropy` of logits.

    Soft Dice is taken per sample and per foreground class, over all voxels i of the patch,

        (2 sum_i p_i g_i + smooth) / (sum_i p_i + sum_i g_i + smooth),

    and averaged; the background has no Dice term. `batch_dice` takes the sums over the whole batch of a process
    instead, as nnU-Net does: a patch without a lesion then costs what it adds to the batch's, not a whole Dice of 0.
    Cross-entropy is the mean over voxels, background included. The paper names both parts and their weights, not these
    details (docs/decisions.md). Logits of half precision are taken to float32 first: a sum over a million voxels
    overflows float16 and loses most of its digits in bfloat16.

    Several logits (deep supervision) get a weighted mean of their losses, each further one with `head_decay` times the
    weight of the one before it: 1 for heads of one resolution, 0.5 for those of a decoder's levels (nnU-Net).

    `parts` holds both terms of the last call without their weights, detached: `soft_dice_loss`, `cross_entropy`.
    """

    def __init__(
        self,
        dice_weight: float,
        ce_weight: float,
        smooth: float = 1e-5,
        batch_dice: bool = False,
        head_decay: float = 1.0,
    ):
        super().__init__()
        if not 0 < head_decay <= 1:
            raise ValueError(f"head_decay={head_decay} is not in (0, 1]")
        self.dice_weight, self.ce_weight, self.smooth = dice_weight, ce_weight, smooth
        self.batch_dice, self.head_decay = batch_dice, head_decay
        self.parts: dict[str, Tensor] = {}

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Scalar loss of logits (B, C, D, H, W) and classes (B, D, H, W), int64.

        C = 1 is a sigmoid head: any class but 0 is foreground.
        """
        heads = [logits] if isinstance(logits, Tensor) else list(logits)
        weights = [self.head_decay**level for level in range(len(heads))]
        terms = [self._terms(head, target) for head in heads]
        for at, name in enumerate(("soft_dice_loss", "cross_entropy")):
            self.parts[name] = _mean([term[at].detach() for term in terms], weights)
        return _mean([self.dice_weight * dice + self.ce_weight * entropy for dice, entropy in terms], weights)

    def _terms(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(1 - soft Dice, cross-entropy) of one head."""
        if logits.shape[:1] + logits.shape[2:] != target.shape:
            raise ValueError(
                f"logits {tuple(logits.shape)} and target {tuple(target.shape)} are not (B, C, ...) and (B, ...)"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if logits.shape[1] == 1:
            truth = (target > 0).unsqueeze(1).to(logits.dtype)  # (B, 1, D, H, W)
            probabilities = logits.sigmoid()
            cross_entropy = F.binary_cross_entropy_with_logits(logits, truth)
        else:
            classes = torch.arange(1, logits.shape[1], device=target.device).view(1, -1, *[1] * (target.ndim - 1))
            truth = (target.unsqueeze(1) == classes).to(logits.dtype)  # (B, C - 1, D, H, W)
            log_probabilities = logits.log_softmax(dim=1)
            probabilities = log_probabilities[:, 1:].exp()
            cross_entropy = F.nll_loss(log_probabilities, target)
        return 1 - self._soft_dice(probabilities, truth), cross_entropy

    def _soft_dice(self, probabilities: Tensor, truth: Tensor) -> Tensor:
        overlap = (probabilities * truth).flatten(2).sum(2)  # (B, foreground classes)
        size = probabilities.flatten(2).sum(2) + truth.flatten(2).sum(2)
        if self.batch_dice:
            overlap, size = overlap.sum(0), size.sum(0)
        return ((2 * overlap + self.smooth) / (size + self.smooth)).mean()


def _mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    if len(values) == 1:
        return values[0]
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum() / sum(weights)
