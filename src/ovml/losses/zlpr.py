"""Zero-bounded log-sum-exp and pairwise rank-based loss."""

from __future__ import annotations

import torch
from torch import Tensor

from ovml.losses.base import check_pair
from ovml.losses.scaled import ScaledLoss


class ZLPRLoss(ScaledLoss):
    r"""ZLPR (Su et al., 2022, arXiv 2208.02955): present logits above 0, absent ones below, and each pair apart.

    `loss = log(1 + sum_{n absent} exp(z_n)) + log(1 + sum_{p present} exp(-z_p))`, `z = scale * logit + offset`; the
    mean over images.

    Args:
        scale: See `ScaledLoss`.
        offset: See `ScaledLoss`.
        learned: See `ScaledLoss`.

    Example:
        >>> ZLPRLoss()(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[1, 0, -1]]))
        tensor(1.3863)
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over images; logits and targets `[B, L]`, unknown labels taking no part."""
        check_pair(logits, targets)
        logits = self.scaled(logits)
        zero = logits.new_zeros(len(logits), 1)
        sums = [
            torch.cat([zero, values.masked_fill(targets != mark, -torch.inf)], dim=1).logsumexp(dim=1)
            for values, mark in ((logits, 0), (-logits, 1))
        ]
        return (sums[0] + sums[1]).mean()
