"""Ranking losses whose margin adapts to the scale of the scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ovml.losses.base import Loss
from ovml.losses.ranking import ranking_loss
from ovml.utils.errors import check_positive
from ovml.utils.tensors import full_precision


class LearnedMarginRankingLoss(Loss):
    """MKT's ranking loss with a trained margin `m`: each pair costs `max(0, m + s_n - s_p) / m`.

    A pair costs 1 if both labels have the same score, and 0 if the present label leads by `m`. The division keeps the
    margin from shrinking to 0: pairs in the wrong order increase it, pairs in the right order decrease it.

    Args:
        margin: Initial margin. Scores that are normalised over hundreds of labels differ by a few hundredths.

    Raises:
        UserError: The margin is not positive.

    Example:
        >>> LearnedMarginRankingLoss(0.5)(torch.tensor([[0.9, 0.7]]), torch.tensor([[1, 0]])).item()
        0.6...
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        check_positive(self, margin=margin)
        self.margin = margin
        self.log_margin = nn.Parameter(torch.tensor(math.log(margin)))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over images; logits and targets are `[B, L]`, and unknown labels are ignored."""
        return ranking_loss(full_precision(logits) / self.log_margin.exp(), targets)


class SpreadMarginRankingLoss(Loss):
    """MKT's ranking loss with a margin of `factor` standard deviations of the image's own scores.

    The margin `m` of an image comes from the scores of its known labels and is a constant to the gradient; each pair
    costs `max(0, m + s_n - s_p) / m`. The share of violating pairs therefore does not depend on the scale of the
    scores.

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
        check_positive(self, factor=factor)
        self.factor = factor

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over images; logits and targets are `[B, L]`, and unknown labels are ignored."""
        logits = full_precision(logits)
        known = targets != -1
        count = known.sum(dim=1, keepdim=True).clamp(min=1)
        scores = logits.detach().masked_fill(~known, 0)
        mean = scores.sum(dim=1, keepdim=True) / count
        spread = ((scores - mean).square() * known).sum(dim=1, keepdim=True).div(count).sqrt()
        # Centred, because rounding would erase small differences between scores that are far from 0.
        return ranking_loss((logits - mean) / (self.factor * spread).clamp(min=1e-12), targets)
