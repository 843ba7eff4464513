"""Distillation of the similarities between the images of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.distillation.base import Distillation
from ovml.encoders import ImageFeatures
from ovml.utils.tensors import full_precision


class RelationalDistillation(Distillation):
    """Similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682).

    `loss = ||n(S S') - n(T T')||_F^2 / B^2`, with the global embeddings `S` and `T` `[B, D]` of student and teacher,
    and `n` dividing each row by its L2 norm. The loss ignores rotations of the whole space, which break the fit to
    the text tower, so combine it with another distillation.

    The loss is at most `4 / B`; the paper multiplies it by 3,000. With several processes each compares its own images
    only, so the loss depends on how a batch is divided. For a single image it is 0.

    Example:
        >>> student, turned = torch.randn(5, 8), torch.linalg.qr(torch.randn(8, 8)).Q
        >>> a, b = (ImageFeatures(s, torch.zeros(5, 4, 8)) for s in (student, student @ turned))
        >>> bool(RelationalDistillation()(a, b) < 1e-6)
        True
    """

    def forward(self, student: ImageFeatures, teacher: ImageFeatures) -> Tensor:
        """Return the squared difference of the similarities `[B, B]`, divided by `B^2`."""
        ours, theirs = (_similarities(features.global_embeds) for features in (student, teacher))
        return (ours - theirs).square().mean()


def _similarities(embeds: Tensor) -> Tensor:
    # In half precision, as under autocast, the error would be as large as the differences.
    with torch.autocast(embeds.device.type, enabled=False):
        embeds = full_precision(embeds)
        return F.normalize(embeds @ embeds.T, dim=-1)
