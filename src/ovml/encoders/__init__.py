"""Thin views on a Hugging Face `CLIPModel` or `SiglipModel`: patch embeddings and label embeddings.

The towers' modules are the model's own, under the model's own names; only the order in which they run is written here.
"""

from ovml.encoders.clip import Features, ImageEncoder, ImageFeatures, ImageTail, LabelDependentFeatures, widened
from ovml.encoders.clip_text import TextEncoder
from ovml.encoders.factory import make_encoders
from ovml.encoders.siglip import SiglipImageEncoder, SiglipImageTail, SiglipTextEncoder
from ovml.encoders.texts import TokenizedTexts, pad_rows

__all__ = [
    "Features",
    "ImageEncoder",
    "ImageFeatures",
    "ImageTail",
    "LabelDependentFeatures",
    "SiglipImageEncoder",
    "SiglipImageTail",
    "SiglipTextEncoder",
    "TextEncoder",
    "TokenizedTexts",
    "make_encoders",
    "pad_rows",
    "widened",
]
