"""The base class of all distillation losses."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.utils.parts import Part
from ovml.utils.tensors import full_precision


class Distillation(Part, nn.Module, ABC):
    """Base class of losses that compare features of the trained vision tower with those of the original CLIP.

    To add one, subclass it, implement `forward`, and pass the class on the command line:
    `--model.distillation my_pkg.MyDistillation`. Its parameters are trained in the vision stage, or in `HeadStage`.

    Example:
        >>> class PatchL2(Distillation):
        ...     def forward(self, student, teacher):
        ...         return (student.patch_embeds - teacher.patch_embeds).square().mean()
    """

    @abstractmethod
    def forward(self, student: ImageFeatures, teacher: ImageFeatures) -> Tensor:
        """Return a scalar.

        Args:
            student: Global embeddings `[B, D]` and patch embeddings `[B, P, D]` of the trained tower.
            teacher: Features of the original CLIP for the same images, without gradient.
        """


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return `1 - cos` of embeddings `[..., D]`, as `[...]`, in float32 or wider.

    Distances to the teacher may be below half precision's resolution.
    """
    return 1 - F.cosine_similarity(full_precision(student), full_precision(teacher), dim=-1)
