"""ZLPR: zero-bounded log-sum-exp and pairwise rank-based loss."""

from __future__ import annotations

import torch
from torch import Tensor

from ovml.losses.base import check_pair
from ovml.losses.scaled import ScaledLoss


class ZLPRLoss(ScaledLoss):
    r"""ZLPR loss, which pushes present logits above 0 and absent logits below 0 (Su et al., 2022, arXiv 2208.02955).

    `loss = log(1 + sum_{n absent} exp(z_n)) + log(1 + sum_{p present} exp(-z_p))` with `z = scale * logit + offset`,
    averaged over images. Arguments are those of `ScaledLoss`.

    Example:
        >>> ZLPRLoss()(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[1, 0, -1]]))
        tensor(1.3863)
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over images; logits and targets are `[B, L]`, and unknown labels are ignored."""
        check_pair(logits, targets)
        logits = self.scaled(logits)
        zero = logits.new_zeros(len(logits), 1)
        sums = [
            torch.cat([zero, values.masked_fill(targets != target, -torch.inf)], dim=1).logsumexp(dim=1)
            for values, target in ((logits, 0), (-logits, 1))
        ]
        return (sums[0] + sums[1]).mean()
