"""Base class of losses with scaled logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ovml.losses.base import Loss
from ovml.utils.errors import check_positive
from ovml.utils.tensors import full_precision


class ScaledLoss(Loss):
    """Base class of losses that first compute `scale * logits + offset`.

    Scores that a head normalises over labels are far below 1, where a sigmoid or an exponential is almost constant.

    Args:
        scale: Factor of the logits.
        offset: Constant added to the scaled logits; a negative value suits data with mostly absent labels.
        learned: Whether scale (as its logarithm) and offset are trained with the head.

    Raises:
        UserError: The scale is not positive.

    Example:
        >>> class MeanOfPresent(ScaledLoss):
        ...     def forward(self, logits, targets):
        ...         return -self.scaled(logits)[targets == 1].mean()
        >>> MeanOfPresent(scale=2.0)(torch.tensor([[0.5, 0.1]]), torch.tensor([[1, 0]]))
        tensor(-1.)
    """

    def __init__(self, scale: float = 1.0, offset: float = 0.0, learned: bool = False) -> None:
        super().__init__()
        check_positive(self, scale=scale)
        self.scale = scale
        self.offset = offset
        self.learned = learned
        if learned:
            self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
            self.learned_offset = nn.Parameter(torch.tensor(float(offset)))

    def scaled(self, logits: Tensor) -> Tensor:
        """Return `scale * logits + offset` in float32 or wider."""
        logits = full_precision(logits)
        if self.learned:
            return logits * self.log_scale.exp() + self.learned_offset
        return logits * self.scale + self.offset
