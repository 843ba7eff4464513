"""Distillation of global embeddings, image by image."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ovml.distillation.base import Distillation, cosine_distance
from ovml.encoders import ImageFeatures


class FeatureL1(Distillation):
    """Mean absolute difference of the global embeddings (MKT's distillation; He et al., AAAI 2023, arXiv 2207.01887).

    Example:
        >>> import torch
        >>> zeros, ones = (ImageFeatures(f(2, 8), f(2, 4, 8)) for f in (torch.zeros, torch.ones))
        >>> FeatureL1()(zeros, ones)
        tensor(1.)
    """

    def forward(self, student: ImageFeatures, teacher: ImageFeatures) -> Tensor:
        """Return the mean of `|student - teacher|` over the global embeddings `[B, D]`."""
        return F.l1_loss(student.global_embeds, teacher.global_embeds)


class CosineDistillation(Distillation):
    """Mean of `1 - cos` of the global embeddings of student and teacher (DistilBERT; Sanh et al., arXiv 1910.01108).

    Only directions are compared. Changes of length cost nothing, as they do not affect plain CLIP's cosine scores.

    Example:
        >>> import torch
        >>> one = ImageFeatures(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 4, 2))
        >>> same, across = (ImageFeatures(torch.tensor([e]), one.patch_embeds) for e in ([5.0, 0.0], [0.0, 5.0]))
        >>> CosineDistillation()(same, one), CosineDistillation()(across, one)
        (tensor(0.), tensor(1.))
    """

    def forward(self, student: ImageFeatures, teacher: ImageFeatures) -> Tensor:
        """Return the mean over images of `1 - cos` of the global embeddings `[B, D]`."""
        return cosine_distance(student.global_embeds, teacher.global_embeds).mean()
