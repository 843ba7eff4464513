"""MKT's ranking loss in O(L log L) time and O(B L) memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ovml.losses.base import Loss, check_pair

EPSILON = 1e-8


class RankingLoss(Loss):
    r"""Every present label should score above every absent one by a margin (He et al., AAAI 2023, eq. 5).

    For an image with present labels `P` and absent labels `N`

    `loss = sum_{p in P, n in N} max(0, margin + s_n - s_p) / (#violating pairs + 1e-8)`

    where the count of violating pairs is a constant to the gradient; the batch's loss is the mean over images,
    with 0 for an image that lacks either kind. Unknown labels take no part.

    The all-pairs form builds `[B, L, L]`; this one sorts the scores of each row once and counts by binary search:
    same value, same gradient.

    Args:
        margin: By how much a present label should lead.

    Example:
        >>> loss = RankingLoss()
        >>> loss(torch.tensor([[0.9, 0.4, 0.7]]), torch.tensor([[1, 0, -1]]))
        tensor(0.5000)
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over images; logits and targets `[B, L]`."""
        return ranking_loss(logits, targets, self.margin)


def ranking_loss(logits: Tensor, targets: Tensor, margin: float = 1.0) -> Tensor:
    """Functional form of `RankingLoss`.

    Args:
        logits: `[B, L]`; half precision is computed in float32.
        targets: `[B, L]`: 1 present, 0 absent, -1 unknown.
        margin: By how much a present label should lead.

    Returns:
        A float32 (or float64) scalar.

    Raises:
        ValueError: Shapes or kinds do not fit, or the batch is empty.
    """
    check_pair(logits, targets)
    if logits.numel() == 0:
        raise ValueError(f"logits are empty: {list(logits.shape)}")
    loss: Tensor = _Ranking.apply(logits, targets, margin)  # type: ignore[no-untyped-call]
    return loss


class _Ranking(torch.autograd.Function):
    """Value and gradient together: both come from the same sorted rows."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, margin: float) -> Tensor:
        scores = logits.detach()
        scores = (scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores).contiguous()
        present, absent = targets == 1, targets == 0
        # Both counts compare the same two rounded numbers, or a pair on the edge would count on one side.
        thresholds = scores - margin
        above, above_sum = _above(thresholds, scores, absent)
        # Pairs that a present label p violates: absent n with s_n > s_p - margin.
        pairs = torch.where(present, above, 0)
        # Cumulative sums run in float64: over thousands of labels float32 would lose the last digits.
        hinge = torch.where(present, above * (margin - scores.to(above_sum.dtype)) + above_sum, 0).sum(dim=1)
        count = pairs.sum(dim=1).to(above_sum.dtype)
        loss = (hinge / (count + EPSILON)).mean()

        present_below = _below(scores, thresholds, present)
        gradient = torch.where(absent, present_below, 0) - pairs
        scale = 1 / ((count + EPSILON) * len(scores))
        ctx.dtype = logits.dtype
        ctx.save_for_backward(gradient * scale.unsqueeze(1).to(scores.dtype))
        return loss.to(scores.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        # To half precision last: a gradient scaler's factor does not fit into float16.
        return (gradient * grad_output).to(ctx.dtype), None, None


def _above(thresholds: Tensor, scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Per row and threshold: how many masked scores are greater, and their sum; both `[B, L]`."""
    wide = torch.float32 if scores.device.type == "mps" else torch.float64
    ordered = scores.masked_fill(~mask, -torch.inf).sort(dim=1).values
    not_above = torch.searchsorted(ordered, thresholds, right=True)
    sums = ordered.masked_fill(ordered == -torch.inf, 0).to(wide).cumsum(dim=1)
    sums = torch.cat([torch.zeros_like(sums[:, :1]), sums], dim=1)
    return scores.shape[1] - not_above, sums[:, -1:] - sums.gather(1, not_above)


def _below(scores: Tensor, thresholds: Tensor, mask: Tensor) -> Tensor:
    """Per row and score: how many masked thresholds are less; `[B, L]`."""
    ordered = thresholds.masked_fill(~mask, torch.inf).sort(dim=1).values
    return torch.searchsorted(ordered, scores, right=False)
