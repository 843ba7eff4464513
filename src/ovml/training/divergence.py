"""Losses that are NaN or infinite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ovml.utils.errors import UserError

EVERY = 50
"""Steps between two looks at the losses on a GPU, each of which waits until it has computed them."""


class LossWatch:
    """Looks at the losses of training: of each step on a CPU, of the last `EVERY` steps together on other devices.

    Attributes:
        every: Steps between two looks; `None` for those above.

    Example:
        >>> watch = LossWatch()
        >>> watch.add(torch.tensor(float("nan")), "vision", 7)
        Traceback (most recent call last):
        ovml.utils.errors.UserError: stage 'vision', step 7: the loss is nan, the training has diverged; lower lr, ...
    """

    def __init__(self) -> None:
        self.every: int | None = None
        self.forget()

    def forget(self) -> None:
        """Forget the losses that nobody has looked at."""
        self._losses: list[Tensor] = []
        self._steps: list[tuple[str, int]] = []

    def add(self, loss: Tensor, stage: str, step: int) -> None:
        """Keep the loss of a step; look at those that are kept if it is time.

        Raises:
            UserError: See `look`.
        """
        self._losses.append(loss.detach())
        self._steps.append((stage, step))
        every = self.every or (1 if loss.device.type == "cpu" else EVERY)
        if len(self._losses) >= every:
            self.look()

    def look(self) -> None:
        """Look at the losses that are kept, and forget them.

        Raises:
            UserError: One is NaN or infinite; the message names the stage and the step.
        """
        losses, steps = torch.stack(self._losses).tolist() if self._losses else [], self._steps
        self.forget()
        for loss, (stage, step) in zip(losses, steps, strict=True):
            if not math.isfinite(loss):
                raise UserError(
                    f"stage {stage!r}, step {step}: the loss is {loss}, the training has diverged; lower lr, "
                    "lengthen the warm-up, or add --trainer.gradient_clip_val 1"
                )
