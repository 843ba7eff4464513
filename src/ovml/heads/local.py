"""The head with the local stream alone: the patches that match a label best."""

from __future__ import annotations

import torch
from torch import Tensor

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, normalize_over_labels
from ovml.heads.chunks import chunks
from ovml.utils.errors import UserError, check_positive


def local_scores(features: ImageFeatures, label_embeds: Tensor, top_k: int, budget: int | None = None) -> Tensor:
    """Return the mean of the `top_k` largest dot products of each label with the patches (MKT; He et al., AAAI 2023).

    Labels are processed in chunks, because all `B * L * P` dot products at once would dominate the memory of a large
    vocabulary. A label's score depends on no other label, so chunks change neither scores nor gradients.

    Args:
        features: Image features; the patch embeddings `[B, P, D]` are used.
        label_embeds: Label embeddings `[L, D]`.
        top_k: Number of patches averaged.
        budget: Dot products in memory at once, at least those of one label. Default: see `ovml.heads.chunks`.

    Returns:
        Scores `[B, L]`.

    Raises:
        UserError: `top_k` is not from 1 to the number of patches.
    """
    patch_embeds = features.patch_embeds
    num_images, num_patches = patch_embeds.shape[:2]
    if not 1 <= top_k <= num_patches:
        raise UserError(f"top_k must be from 1 to {num_patches}, the number of patches of an image; got {top_k}")
    scores = []
    for chunk in chunks(label_embeds, num_images * num_patches, budget):
        similarity = chunk @ patch_embeds.transpose(1, 2)  # [B, chunk, P]: topk is fastest along contiguous memory
        scores.append(similarity.topk(top_k, dim=-1, sorted=False).values.mean(dim=-1))
    return scores[0] if len(scores) == 1 else torch.cat(scores, dim=1)


class LocalHead(Head):
    """Mean dot product of the `top_k` best patches, divided by its L2 norm over the labels: MKT's local stream.

    Args:
        top_k: Number of patches averaged per label. The published code trains with 16 of 196.

    Example:
        >>> import torch
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> LocalHead(top_k=2)(features, torch.randn(5, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(self, top_k: int = 16) -> None:
        super().__init__()
        check_positive(self, top_k=top_k)
        self.top_k = top_k

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return `local / ||local||`, `[B, L]`, with the norm over the labels of each image."""
        return self.combine(*self.label_scores(features, label_embeds))

    def label_scores(self, features: ImageFeatures, label_embeds: Tensor) -> tuple[Tensor, ...]:
        """The local stream."""
        return (local_scores(features, label_embeds, self.top_k),)

    def combine(self, *scores: Tensor) -> Tensor:
        """The stream, normalised over the labels."""
        return normalize_over_labels(scores[0])
