"""MKT's head: the mean of a global and a local stream."""

from __future__ import annotations

from torch import Tensor

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, normalize_over_labels
from ovml.heads.global_ import global_scores
from ovml.heads.local import local_scores
from ovml.utils.errors import check_positive


class TwoStreamHead(Head):
    """Mean of the local and the global stream, each normalised over the labels (MKT; He et al., AAAI 2023).

    `s = (local / ||local|| + global / ||global||) / 2`, with norms over the labels of each image. A score therefore
    depends on the set of labels that is scored.

    Args:
        top_k: Number of patches averaged per label in the local stream.
        normalize: Whether to divide each stream by its norm. Without it a score does not depend on the other labels.

    Example:
        >>> import torch
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> TwoStreamHead(top_k=2)(features, torch.randn(5, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(self, top_k: int = 16, normalize: bool = True) -> None:
        super().__init__()
        check_positive(self, top_k=top_k)
        self.top_k = top_k
        self.normalize = normalize

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return scores `[B, L]`."""
        return self.combine(*self.label_scores(features, label_embeds))

    def label_scores(self, features: ImageFeatures, label_embeds: Tensor) -> tuple[Tensor, ...]:
        """The local and the global stream."""
        return local_scores(features, label_embeds, self.top_k), global_scores(features, label_embeds)

    def combine(self, *scores: Tensor) -> Tensor:
        """The mean of both streams, each normalised over the labels."""
        local, of_image = (normalize_over_labels(stream) for stream in scores) if self.normalize else scores
        return (local + of_image) / 2
