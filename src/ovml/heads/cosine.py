"""The head of plain CLIP: cosine similarity of image and label."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head


class CosineHead(Head):
    """Cosine similarity of global and label embeddings, as in zero-shot CLIP (Radford et al., ICML 2021).

    Example:
        >>> import torch
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> CosineHead()(features, torch.randn(5, 8)).shape
        torch.Size([2, 5])
    """

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return cosine similarities `[B, L]` from -1 to 1."""
        return F.normalize(features.global_embeds, dim=-1) @ F.normalize(label_embeds, dim=-1).T
