"""Distillation losses keep the trained vision tower close to the original CLIP. To add one, subclass `Distillation`."""

from ovml.distillation.base import Distillation
from ovml.distillation.feature import CosineDistillation, FeatureL1
from ovml.distillation.patch import PatchDistillation
from ovml.distillation.relational import RelationalDistillation
from ovml.distillation.sum import SumDistillation

__all__ = [
    "CosineDistillation",
    "Distillation",
    "FeatureL1",
    "PatchDistillation",
    "RelationalDistillation",
    "SumDistillation",
]
