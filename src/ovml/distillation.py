"""Distillation: keep the adapted vision tower near the original CLIP."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import ImageFeatures


class Distillation(nn.Module, ABC):
    """Compares the features of the adapted tower with those of the frozen original on the same images.

    Subclass it, write `forward`, and name the class on the command line: `--model.distillation my_pkg.MyDistillation`.
    Its parameters learn in the vision stage.

    Example:
        >>> class PatchL2(Distillation):
        ...     def forward(self, student, teacher):
        ...         return (student.patch_embeds - teacher.patch_embeds).square().mean()
    """

    @abstractmethod
    def forward(self, student: ImageFeatures, teacher: ImageFeatures) -> Tensor:
        """Return a scalar.

        Args:
            student: Global embeddings `[B, D]` and patch embeddings `[B, P, D]` of the tower that learns.
            teacher: The same of the original; they carry no gradient.
        """


class FeatureL1(Distillation):
    """Mean absolute difference of the global embeddings (He et al., AAAI 2023, sec. 3.3).

    Example:
        >>> import torch
        >>> zeros, ones = (ImageFeatures(f(2, 8), f(2, 4, 8)) for f in (torch.zeros, torch.ones))
        >>> FeatureL1()(zeros, ones)
        tensor(1.)
    """

    def forward(self, student: ImageFeatures, teacher: ImageFeatures) -> Tensor:
        """Return `mean |student - teacher|` over the global embeddings `[B, D]`."""
        return F.l1_loss(student.global_embeds, teacher.global_embeds)
