"""The training of CoOp and DualCoOp: SGD at a rate of each epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ovml.training.stages import PromptStage
from ovml.utils.errors import check_not_negative, check_share


@dataclass(repr=False)
class CoOpStage(PromptStage):
    """The prompt learns by SGD as in CoOp and DualCoOp; the image tower is frozen.

    The rate is constant within an epoch: `warmup_lr` in the first `warmup_epochs`, then a cosine over as many epochs as
    the training has, of which those after the warm-up run: epoch `e` has
    `lr * (1 + cos(pi * (e - warmup_epochs) / epochs)) / 2`. The defaults are those of the published trainings of both
    on COCO (DualCoOp's `lr` on NUS-WIDE is 0.001; CoOp's weight decay and momentum are the defaults of the library that
    both use). `min_lr` has no effect. Other arguments are those of `PromptStage`.

    Args:
        labels_per_step: Train on only this many of the seen labels in a step, drawn at random (100 in DualCoOp on
            NUS-WIDE). Default: all.
        momentum: Momentum of SGD.
        warmup_lr: Rate of the first `warmup_epochs`.

    Example:
        >>> stage = CoOpStage(lr=0.001)
        >>> stage.name, stage.epochs, stage.weight_decay
        ('coop', 50, 0.0005)
    """

    name: ClassVar[str] = "coop"
    keeps_present: ClassVar[bool] = False

    epochs: int = 50
    lr: float = 2e-3
    warmup_epochs: float = 1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup_lr: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(f"stage {self.name!r}", momentum=self.momentum)
        check_not_negative(f"stage {self.name!r}", warmup_lr=self.warmup_lr)

    def optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)

    def schedule(self, optimizer: Optimizer, steps: float, epochs: float) -> dict[str, Any]:
        """A constant rate, then a cosine, stepped per epoch."""

        def rate(epoch: int) -> float:
            if epoch < self.warmup_epochs:
                return self.warmup_lr
            return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup_epochs) / epochs))

        return {"scheduler": LambdaLR(optimizer, lambda epoch: rate(epoch) / self.lr), "interval": "epoch"}
