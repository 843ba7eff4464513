"""Fits what can be fitted on images without labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ovml.encoders import widened
from ovml.heads.pool import PoolFitted
from ovml.inference.tagger import Tagger, inference
from ovml.model import OpenVocabularyModel
from ovml.prompts import TemplatePrompt
from ovml.utils.errors import UserError
from ovml.utils.images import ImageLike
from ovml.vocabulary import LabelVocabulary


class Adapted(NamedTuple):
    """How many images a head was fitted on.

    Attributes:
        images: Images that were read.
        unreadable: Images that could not be read, and were left out.
    """

    images: int
    unreadable: int


def adapt(
    model: OpenVocabularyModel,
    images: Iterable[ImageLike],
    labels: Sequence[str] | LabelVocabulary | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
) -> Adapted:
    """Fit a model's head on images without labels, in one pass; what it learned is saved with the model.

    Never take the images that results are reported on, or say so.

    Args:
        model: Its head is a `PoolFitted`, such as `GaussianHead`.
        images: See `Tagger.tag`.
        labels: Labels that the head is fitted for. Default: the model's vocabulary.
        batch_size: Images per batch.
        num_workers: Threads that read images; see `Tagger`.

    Raises:
        UserError: The head cannot be fitted so, or there are too few images.

    Example:
        >>> from PIL import Image
        >>> from ovml.heads import GaussianHead
        >>> model = OpenVocabularyModel("ovml-demo", ["red circle", "blue star"], head=GaussianHead(per_label=8))
        >>> pool = [Image.effect_noise((80, 80), 50).convert("RGB") for _ in range(4)]
        >>> adapt(model, pool)
        Adapted(images=4, unreadable=0)
    """
    head = model.head
    if not isinstance(head, PoolFitted):
        raise UserError(f"head: a {type(head).__name__} is not fitted on images without labels; take GaussianHead")
    tagger = Tagger(model, labels, batch_size=batch_size, num_workers=num_workers)
    bare = TemplatePrompt("{}").bind(model.prompt.text_encoder)

    def embed(texts: Sequence[str]) -> Tensor:
        return bare.embed(tuple(texts))

    images_read = unreadable = 0
    with inference(model), torch.inference_mode(False), torch.no_grad():
        label_embeds = tagger.label_embeds()
        head.begin(tagger.vocabulary, label_embeds, embed)
        for batch in tagger.batches(images):
            readable = [pixels for _, pixels in batch if isinstance(pixels, Tensor)]
            images_read, unreadable = images_read + len(readable), unreadable + len(batch) - len(readable)
            if readable:
                features = model.encode_images(torch.stack(readable).to(model.device))
                head.observe(widened(features.for_labels(label_embeds)))
        head.finish()
    return Adapted(images_read, unreadable)
