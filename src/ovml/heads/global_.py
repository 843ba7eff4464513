"""The head with the global stream alone."""

from __future__ import annotations

from torch import Tensor

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, normalize_over_labels


def global_scores(features: ImageFeatures, label_embeds: Tensor) -> Tensor:
    """Return dot products `[B, L]` of global embeddings and label embeddings."""
    return features.global_embeds @ label_embeds.T


class GlobalHead(Head):
    """Dot products of global and label embeddings, divided by their L2 norm over the labels: MKT's global stream.

    Example:
        >>> import torch
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> GlobalHead()(features, torch.randn(5, 8)).norm(dim=1).allclose(torch.ones(2))
        True
    """

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return `global / ||global||`, `[B, L]`, with the norm over the labels of each image."""
        return normalize_over_labels(global_scores(features, label_embeds))
