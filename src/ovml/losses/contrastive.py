"""Contrastive loss over pairs of image and label."""

from __future__ import annotations

from torch import Tensor

from ovml.losses.base import check_pair
from ovml.losses.scaled import ScaledLoss


class MultiMatchingLoss(ScaledLoss):
    r"""Multi-matching contrastive loss (RAM; Tan et al., CVPR 2025, arXiv 2503.15337).

    One softmax runs over all pairs of an image and a label in the batch:
    `loss = -mean_{present pairs} log(exp(z) / sum_{known pairs} exp(z'))`, with `z = scale * logit`. There is no
    offset, because it would cancel. The loss is 0 for a batch without a present label. With several processes each
    uses its own images only, so the loss depends on how a batch is divided. Arguments are those of `ScaledLoss`, except
    the offset.

    Example:
        >>> import torch
        >>> MultiMatchingLoss()(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.tensor([[1, 0], [0, -1]]))
        tensor(1.0986)
    """

    def __init__(self, scale: float = 1.0, learned: bool = False) -> None:
        super().__init__(scale, 0.0, learned)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over present pairs; logits and targets are `[B, L]`, and unknown labels are ignored."""
        check_pair(logits, targets)
        logits = self.scaled(logits)
        present, known = logits[targets == 1], logits[targets != -1]
        if not len(present):
            return 0 * logits.sum()
        loss: Tensor = known.logsumexp(dim=0) - present.mean()
        return loss
