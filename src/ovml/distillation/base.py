"""The base class of all distillations."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import ImageFeatures


class Distillation(nn.Module, ABC):
    """Compares the features of the adapted tower with those of the frozen original on the same images.

    Subclass it, write `forward`, and name the class on the command line: `--model.distillation my_pkg.MyDistillation`.
    Its parameters learn in the vision stage, or in `HeadStage`.

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


def full_precision(embeds: Tensor) -> Tensor:
    """Half precision as float32: near the teacher a distance is smaller than what half precision tells apart."""
    return embeds.float() if embeds.dtype in (torch.float16, torch.bfloat16) else embeds


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`1 - cos` of embeddings `[..., D]`, in full precision; returns `[...]`."""
    return 1 - F.cosine_similarity(full_precision(student), full_precision(teacher), dim=-1)
