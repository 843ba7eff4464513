"""A softmax over the patches for each label, as DualCoOp's aggregation with one prompt."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head
from ovml.heads.chunks import chunks
from ovml.utils.errors import check_positive, check_share


class SpatialSoftmaxHead(Head):
    r"""Class-specific region feature aggregation (DualCoOp; Sun et al., NeurIPS 2022, arXiv 2206.09541).

    `s_l = scale * sum_p softmax_p(cos(x_p, y_l) / temperature) * cos(x_p, y_l)` over the patches `p`. A high
    temperature gives the mean of all patches, a low one the best patch. A label's score depends on no other label.
    With `global_weight` w the sum becomes `(1 - w) * sum + w * cos(global, y_l)`.

    DualCoOp itself has a present and an absent prompt and weighs the patches for both by the present one: that is
    `DualCoOpHead` with `DualCoOpPrompt`. This head uses one prompt. The published code has temperature 1/20 and scale
    100.

    Args:
        temperature: Temperature of the softmax over the patches.
        scale: Factor of the scores. It does not change rankings, but losses with a margin depend on it.
        global_weight: Weight of the global stream, 0 to 1.

    Raises:
        UserError: An argument is out of its range.

    Example:
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> SpatialSoftmaxHead()(features, torch.randn(5, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(self, temperature: float = 0.05, scale: float = 1.0, global_weight: float = 0.0) -> None:
        super().__init__()
        check_positive(self, temperature=temperature, scale=scale)
        check_share(self, global_weight=global_weight)
        self.temperature = temperature
        self.scale = scale
        self.global_weight = global_weight

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return scores `[B, L]` from -scale to scale."""
        patches, labels = F.normalize(features.patch_embeds, dim=-1), F.normalize(label_embeds, dim=-1)
        scores = []
        for chunk in chunks(labels, patches.shape[0] * patches.shape[1]):
            cosines = chunk @ patches.transpose(1, 2)  # [B, chunk, P]
            scores.append(((cosines / self.temperature).softmax(dim=-1) * cosines).sum(dim=-1))
        local = torch.cat(scores, dim=1)
        return self.scale * with_global(local, features, labels, self.global_weight)


def with_global(local: Tensor, features: ImageFeatures, labels: Tensor, weight: float) -> Tensor:
    """Return `(1 - weight) * local + weight * cos(global, label)`, `[B, L]`.

    Args:
        local: Scores `[B, L]`.
        features: Image features; the global embeddings `[B, D]` are used.
        labels: L2-normalised label embeddings `[L, D]`.
        weight: 0 to 1; at 0 the global stream is not computed.
    """
    if not weight:
        return local
    return (1 - weight) * local + weight * (F.normalize(features.global_embeds, dim=-1) @ labels.T)
