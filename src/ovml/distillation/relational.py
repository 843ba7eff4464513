"""Distillation of how the images of a batch relate to each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.distillation.base import Distillation, full_precision
from ovml.encoders import ImageFeatures


class RelationalDistillation(Distillation):
    """Images that are alike to the original stay alike (Tung and Mori, ICCV 2019, arXiv 1907.09682).

    With `S` and `T` the global embeddings `[B, D]` of student and teacher, and `n` dividing each row by its L2 norm:
    `loss = ||n(S S') - n(T T')||_F^2 / B^2`. The space may turn as a whole, so much more may change than under
    `FeatureL1`, the fit to the text tower included: a companion of another distillation rather than its substitute.

    It is a small number, at most `4 / B`: the paper multiplies it by 3,000. Each of several processes compares its own
    images alone, so that, unlike ovml's other losses, it depends on how a batch is divided. Of one image nothing can be
    said, and it is 0.

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
    # Autocast would take the product in half precision, whose error is as large as what is compared.
    with torch.autocast(embeds.device.type, enabled=False):
        embeds = full_precision(embeds)
        return F.normalize(embeds @ embeds.T, dim=-1)
