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
        return self.combine(*self.label_scores(features, label_embeds))

    def label_scores(self, features: ImageFeatures, label_embeds: Tensor) -> tuple[Tensor, ...]:
        """The global stream."""
        return (global_scores(features, label_embeds),)

    def combine(self, *scores: Tensor) -> Tensor:
        """The stream, normalised over the labels."""
        return normalize_over_labels(scores[0])
