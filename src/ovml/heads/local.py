"""The local stream alone: the patches that fit a label best."""

from __future__ import annotations

import torch
from torch import Tensor

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, normalize_over_labels
from ovml.heads.chunks import chunks
from ovml.utils.errors import UserError


def local_scores(features: ImageFeatures, label_embeds: Tensor, top_k: int, budget: int | None = None) -> Tensor:
    """Mean of the `top_k` largest dot products of a label with the patches (He et al., AAAI 2023, sec. 3.2).

    All `B * L * P` dot products at once would be most of what scoring a large vocabulary takes in memory, so the
    labels are taken in chunks. A label's score depends on no other label: the result is the same, and so is the
    gradient.

    Args:
        features: Of which the patch embeddings `[B, P, D]` are used.
        label_embeds: `[L, D]`.
        top_k: Number of patches averaged.
        budget: Dot products held at once (those of one label at least). Default: what suits the device.

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
    """Mean over the best `top_k` patches of each label, normalised over the labels.

    Args:
        top_k: Number of patches averaged per label (16 of 196 in the paper's training).

    Example:
        >>> import torch
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> LocalHead(top_k=2)(features, torch.randn(5, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(self, top_k: int = 16) -> None:
        super().__init__()
        self.top_k = top_k

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return `local / ||local||` over labels, `[B, L]`."""
        return normalize_over_labels(local_scores(features, label_embeds, self.top_k))
