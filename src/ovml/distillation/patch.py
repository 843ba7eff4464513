"""Distillation of patch embeddings."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ovml.distillation.base import Distillation, cosine_distance
from ovml.encoders import ImageFeatures
from ovml.utils.tensors import full_precision


class PatchDistillation(Distillation):
    """Mean distance of the patch embeddings of student and teacher, over images and patches.

    `"cosine"` is `mean_{b,p} (1 - cos(s_bp, t_bp))`; `"l1"` applies the distance of `FeatureL1` to each patch,
    `mean_{b,p,d} |s_bpd - t_bpd|`. CLIPSelf (Wu et al., ICLR 2024, arXiv 2310.01403) distils regions with the cosine
    too; its targets come from image crops, whereas here they are the original CLIP's patches.

    This loss constrains the local stream of a head, which distillation of global embeddings does not.

    Args:
        distance: `"cosine"` or `"l1"`.

    Raises:
        UserError: `distance` is neither.

    Example:
        >>> import torch
        >>> zeros, ones = (ImageFeatures(f(2, 8), f(2, 4, 8)) for f in (torch.zeros, torch.ones))
        >>> PatchDistillation("l1")(zeros, ones), PatchDistillation()(ones, ones).abs() < 1e-6
        (tensor(1.), tensor(True))
    """

    def __init__(self, distance: Literal["cosine", "l1"] = "cosine") -> None:
        super().__init__()
        self.distance = distance

    def forward(self, student: ImageFeatures, teacher: ImageFeatures) -> Tensor:
        """Return the mean distance of the patch embeddings `[B, P, D]`."""
        if self.distance == "l1":
            return F.l1_loss(full_precision(student.patch_embeds), full_precision(teacher.patch_embeds))
        return cosine_distance(student.patch_embeds, teacher.patch_embeds).mean()
