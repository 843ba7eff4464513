"""Weighted sum of distillation losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovml.distillation.base import Distillation
from ovml.distillation.feature import CosineDistillation, FeatureL1
from ovml.distillation.patch import PatchDistillation
from ovml.distillation.relational import RelationalDistillation
from ovml.encoders import ImageFeatures
from ovml.utils.errors import UserError, check_not_negative


class SumDistillation(Distillation):
    """Weighted sum of ovml's distillation losses, `sum_i w_i loss_i`. Losses of weight 0 are not computed.

    Training multiplies the sum by the model's `distillation_weight`. To include a loss of your own, subclass
    `Distillation` and call both.

    Args:
        feature: Weight of `FeatureL1`.
        cosine: Weight of `CosineDistillation`.
        relational: Weight of `RelationalDistillation`.
        patch: Weight of `PatchDistillation` with the cosine distance.

    Raises:
        UserError: A weight is negative, or all weights are 0.

    Example:
        >>> zeros, ones = (ImageFeatures(f(2, 8), f(2, 4, 8)) for f in (torch.zeros, torch.ones))
        >>> SumDistillation(feature=0.5, patch=0.25)(zeros, ones)
        tensor(0.7500)
    """

    def __init__(self, feature: float = 1.0, cosine: float = 0.0, relational: float = 0.0, patch: float = 0.0) -> None:
        super().__init__()
        weights = {"feature": feature, "cosine": cosine, "relational": relational, "patch": patch}
        check_not_negative(self, **weights)
        if not any(weights.values()):
            raise UserError("SumDistillation: all weights are 0; to turn distillation off give distillation_weight 0")
        self.feature = feature
        self.cosine = cosine
        self.relational = relational
        self.patch = patch
        kinds: tuple[type[nn.Module], ...] = (FeatureL1, CosineDistillation, RelationalDistillation, PatchDistillation)
        chosen = {name: kind() for (name, weight), kind in zip(weights.items(), kinds, strict=True) if weight}
        self._parts = nn.ModuleDict(chosen)

    def forward(self, student: ImageFeatures, teacher: ImageFeatures) -> Tensor:
        """Return the weighted sum over `[B, D]` global and `[B, P, D]` patch embeddings."""
        losses = [getattr(self, name) * part(student, teacher) for name, part in self._parts.items()]
        return torch.stack(losses).sum()
