"""The base class of all losses."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ovml.utils.parts import Part


class Loss(Part, nn.Module, ABC):
    """Base class of multi-label losses. Parameters of a loss are trained in the vision stage or in `HeadStage`.

    Example:
        >>> class MeanAbsentScore(Loss):
        ...     def forward(self, logits, targets):
        ...         return logits[targets == 0].mean()
    """

    @abstractmethod
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar.

        Args:
            logits: `[B, L]`.
            targets: Integers `[B, L]`: 1 present, 0 absent, -1 unknown (as `ignore_index=-1` in torchmetrics).
        """


def check_pair(logits: Tensor, targets: Tensor) -> None:
    """Raise `ValueError` unless logits are floats `[B, L]` and targets integers of the same shape."""
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise ValueError(f"logits and targets must both be [B, L]; got {list(logits.shape)} and {list(targets.shape)}")
    if not logits.is_floating_point() or targets.is_floating_point():
        raise ValueError(f"logits must be floats and targets integers; got {logits.dtype} and {targets.dtype}")
