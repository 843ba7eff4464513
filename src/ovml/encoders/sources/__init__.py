"""Patch sources: where the patch embeddings of a CLIP tower come from, without training."""

from ovml.encoders.sources.base import PatchSource, attend_by_values, mix, self_similarity
from ovml.encoders.sources.last_block import ITACLIP, SCLIP, MaskCLIP, PlainPatches
from ovml.encoders.sources.scclip import SCCLIP
from ovml.encoders.sources.surgery import CLIPSurgery

__all__ = [
    "ITACLIP",
    "SCCLIP",
    "SCLIP",
    "CLIPSurgery",
    "MaskCLIP",
    "PatchSource",
    "PlainPatches",
    "attend_by_values",
    "mix",
    "self_similarity",
]
