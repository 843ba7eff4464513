"""Ranking losses whose margin fits the size of the scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ovml.losses.base import Loss
from ovml.losses.ranking import ranking_loss
from ovml.utils.errors import UserError


class LearnedMarginRankingLoss(Loss):
    """MKT's ranking loss with a learned margin `m`: of pairs, `max(0, m + s_n - s_p) / m` in the place of `m = 1`.

    A pair costs 1 where both labels score alike, and nothing where the present one leads by `m`. Without the division
    the margin would shrink to nothing; with it, pairs in the wrong order ask for a greater margin and pairs in the
    right order for a smaller one.

    Args:
        margin: Where it starts. Scores normalised over some hundred labels differ by a few hundredths.

    Raises:
        UserError: The margin is not positive.

    Example:
        >>> LearnedMarginRankingLoss(0.5)(torch.tensor([[0.9, 0.7]]), torch.tensor([[1, 0]])).item()
        0.6...
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        if margin <= 0:
            raise UserError(f"LearnedMarginRankingLoss: margin must be greater than 0; got {margin}")
        self.margin = margin
        self.log_margin = nn.Parameter(torch.tensor(math.log(margin)))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over images; logits and targets `[B, L]`."""
        return ranking_loss(logits.float() / self.log_margin.exp(), targets)


class SpreadMarginRankingLoss(Loss):
    """MKT's ranking loss with a margin taken from the data: `factor` standard deviations of an image's own scores.

    The scores of all known labels of an image give its margin `m`, a constant to the gradient; of pairs,
    `max(0, m + s_n - s_p) / m` counts. So the share of violating pairs does not depend on the size of the scores.

    Args:
        factor: Margin in standard deviations.

    Raises:
        UserError: The factor is not positive.

    Example:
        >>> SpreadMarginRankingLoss()(torch.tensor([[9.0, -1.0, 1.0]]), torch.tensor([[1, 0, 0]])).item()
        0.0
    """

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        if factor <= 0:
            raise UserError(f"SpreadMarginRankingLoss: factor must be greater than 0; got {factor}")
        self.factor = factor

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over images; logits and targets `[B, L]`."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        known = targets != -1
        count = known.sum(dim=1, keepdim=True).clamp(min=1)
        scores = logits.detach().masked_fill(~known, 0)
        mean = scores.sum(dim=1, keepdim=True) / count
        spread = ((scores - mean).square() * known).sum(dim=1, keepdim=True).div(count).sqrt()
        # Only differences count; of scores far from 0 with little spread, rounding would take them.
        return ranking_loss((logits - mean) / (self.factor * spread).clamp(min=1e-12), targets)
