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
    is below `s_n`. The thresholds of a row are sorted, and a binary search gives the number that n violates. Sums of
    absent scores, grouped by that number and accumulated, give the hinges of each p.
    """
    # Sums use float64, because float32 would lose the last digits over thousands of labels.
    wide = torch.float32 if scores.device.type == "mps" else torch.float64
    rows, columns = (targets == 1).nonzero(as_tuple=True)
    per_row = torch.bincount(rows, minlength=len(scores))
    width = int(per_row.max())
    slot = torch.arange(len(rows), device=scores.device) - (per_row.cumsum(0) - per_row)[rows]
    thresholds = scores.new_full((len(scores), width), torch.inf)
    thresholds[rows, slot] = scores[rows, columns] - margin
    ordered, order = thresholds.sort(dim=1)
    # Both counts compare the same rounded numbers; otherwise a pair exactly at the margin could count only once.
    violated = torch.searchsorted(ordered, scores).mul_(targets == 0)

    def violations(values: Tensor) -> Tensor:
        """Sum the values `[B, L]` of all n that violate each threshold; thresholds are in their original order."""
        sums = torch.zeros(len(scores), width + 1, dtype=wide, device=scores.device).scatter_add_(1, violated, values)
        at_least = sums[:, 1:].flip(1).cumsum(1).flip(1)
        return torch.empty_like(at_least).scatter_(1, order, at_least)[rows, slot]

    pairs = violations(torch.ones((), dtype=wide, device=scores.device).expand_as(scores))
    hinge = violations(scores.to(wide)) - pairs * (scores[rows, columns].to(wide) - margin)
    gradient = violated.to(scores.dtype)
    gradient[rows, columns] = -pairs.to(scores.dtype)
    nothing = torch.zeros(len(scores), dtype=wide, device=scores.device)
    return nothing.index_add(0, rows, hinge), nothing.index_add(0, rows, pairs), gradient
