"""MKT's ranking loss in O(L log L) time and O(B L) memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovml.losses.base import Loss, check_pair
from ovml.utils.errors import check_positive
from ovml.utils.tensors import full_precision

EPSILON = 1e-8


class RankingLoss(Loss):
    r"""Pairwise ranking loss of MKT: present labels should outscore absent labels by a margin (He et al., AAAI 2023).

    For an image with present labels `P` and absent labels `N`

    `loss = sum_{p in P, n in N} max(0, margin + s_n - s_p) / (#violating pairs + 1e-8)`

    where the number of violating pairs is a constant to the gradient. The loss of a batch is the mean over images; an
    image without a present or without an absent label counts as 0. Unknown labels are ignored.

    The all-pairs form needs a tensor `[B, L, L]`. This implementation sorts the scores of present labels and counts by
    binary search, with the same value and gradient.

    Args:
        margin: Score difference by which a present label should lead.
        temperature: Divisor of the scores. Scores that a head normalises over hundreds of labels are so small that
            with the published value 1 nearly every pair violates the margin, and the loss is almost linear.

    Raises:
        UserError: The temperature is not positive.

    Example:
        >>> loss = RankingLoss()
        >>> loss(torch.tensor([[0.9, 0.4, 0.7]]), torch.tensor([[1, 0, -1]]))
        tensor(0.5000)
    """

    def __init__(self, margin: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        check_positive(self, temperature=temperature)
        self.margin = margin
        self.temperature = temperature

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over images; logits and targets are `[B, L]`, and unknown labels are ignored."""
        if self.temperature != 1:
            logits = full_precision(logits) / self.temperature
        return ranking_loss(logits, targets, self.margin)


def ranking_loss(logits: Tensor, targets: Tensor, margin: float = 1.0) -> Tensor:
    """Functional form of `RankingLoss`.

    Args:
        logits: `[B, L]`; half precision is computed in float32.
        targets: `[B, L]`: 1 present, 0 absent, -1 unknown.
        margin: Score difference by which a present label should lead.

    Returns:
        A float32 (or float64) scalar.

    Raises:
        ValueError: Shapes or dtypes do not fit, or the batch is empty.

    Example:
        >>> ranking_loss(torch.tensor([[0.9, 0.4]]), torch.tensor([[1, 0]]), margin=0.2)
        tensor(0.)
    """
    check_pair(logits, targets)
    if logits.numel() == 0:
        raise ValueError(f"logits are empty: {list(logits.shape)}")
    loss: Tensor = _Ranking.apply(logits, targets, margin)  # type: ignore[no-untyped-call]
    return loss


class _Ranking(torch.autograd.Function):
    """Computes value and gradient together, from the same counts."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, margin: float) -> Tensor:
        scores = full_precision(logits.detach()).contiguous()
        hinge, pairs, gradient = _count_pairs(scores, targets, margin)
        scale = 1 / (pairs + EPSILON)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(gradient * (scale / len(scores)).unsqueeze(1).to(scores.dtype))
        return (hinge * scale).mean().to(scores.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        # Convert to half precision last, because a gradient scaler's factor does not fit into float16.
        return (gradient * grad_output).to(ctx.dtype), None, None


def _count_pairs(scores: Tensor, targets: Tensor, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of hinges `[B]`, the number of violating pairs `[B]`, and the gradient of the sum `[B, L]`.

    A present label p has the threshold `threshold_p = s_p - margin`. An absent label n violates all p whose threshold
    is below `s_n`: a binary search among the sorted thresholds of a row gives their number. How many n violate each p
    follows by counting. These counts are the gradient, and its product with the scores is the sum of hinges: integers
    and sums in a fixed order, so the same on a GPU from run to run.
    """
    present, absent = targets == 1, targets == 0
    thresholds = (scores - margin).masked_fill(~present, torch.inf)
    ordered, columns = thresholds.topk(_most_present(present), dim=1, largest=False)
    violated = torch.searchsorted(ordered, scores).mul_(absent)
    numbers = violated.new_zeros(len(scores), columns.shape[1] + 1).scatter_add_(1, violated, absent.to(violated))
    at_least = numbers[:, 1:].flip(1).cumsum(1).flip(1)
    violating = torch.zeros_like(violated).scatter_(1, columns, at_least).mul_(present)
    gradient = (violated - violating).to(scores.dtype)
    # Sums use float64, because float32 would lose the last digits over thousands of labels.
    wide = torch.float32 if scores.device.type == "mps" else torch.float64
    # Only scores that take part: others may be infinite. One of a present label that is not finite shows in the loss.
    taking_part = scores.masked_fill(~present & (violated == 0), 0).to(wide)
    pairs = violating.sum(dim=1).to(wide)
    return (taking_part * gradient).sum(dim=1) + margin * pairs, pairs, gradient


def _most_present(present: Tensor) -> int:
    """The largest number of present labels in a row; on a GPU, which would have to be waited for, of all labels."""
    return int(present.sum(dim=1).max()) if present.device.type == "cpu" else present.shape[1]
