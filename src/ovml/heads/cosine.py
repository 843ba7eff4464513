"""Plain CLIP: cosine similarity of the whole picture and the label."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head


class CosineHead(Head):
    """Zero-shot CLIP as published (Radford et al., 2021): cosine of global and label embedding.

    Example:
        >>> import torch
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> CosineHead()(features, torch.randn(5, 8)).shape
        torch.Size([2, 5])
    """

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return cosine similarities `[B, L]` in -1..1."""
        return F.normalize(features.global_embeds, dim=-1) @ F.normalize(label_embeds, dim=-1).T
