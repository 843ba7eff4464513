"""Choice of the encoders for a model."""

from __future__ import annotations

from typing import Any

from ovml.encoders.clip import ImageEncoder
from ovml.encoders.clip_text import TextEncoder
from ovml.encoders.execution import Execution
from ovml.encoders.siglip import SiglipImageEncoder, SiglipTextEncoder
from ovml.encoders.sources.base import PatchSource
from ovml.utils.errors import UserError


def make_encoders(
    clip: Any, tokenizer: Any, execution: Execution | None = None, patch_source: PatchSource | None = None
) -> tuple[ImageEncoder, TextEncoder]:
    """Make the image encoder and the text encoder of a model.

    Args:
        clip: A `CLIPModel` or `SiglipModel`.
        tokenizer: The checkpoint's tokenizer.
        execution: How the blocks run.
        patch_source: See `ImageEncoder`.

    Raises:
        UserError: The model is of another type, lacks a module that the encoders need, or does not fit the source.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> image_encoder, text_encoder = make_encoders(load_clip("ovml-demo"), load_tokenizer("ovml-demo"))
        >>> type(image_encoder).__name__
        'ImageEncoder'
    """
    kind = getattr(getattr(clip, "config", None), "model_type", None)
    encoders = {"clip": (ImageEncoder, TextEncoder), "siglip": (SiglipImageEncoder, SiglipTextEncoder)}
    if kind not in encoders:
        raise UserError(f"clip: a {type(clip).__name__}; ovml needs a CLIPModel or SiglipModel")
    of_images, of_texts = encoders[kind]
    return of_images(clip, execution, patch_source), of_texts(clip, tokenizer, execution=execution)
