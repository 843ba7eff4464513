"""Fits what can be fitted on images without labels."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ovml.encoders import ImageFeatures, widened
from ovml.heads.pool import fitted_part
from ovml.inference.tagger import Tagger, inference
from ovml.metrics.adapted import Adapted, ScoreThreshold, check_expected
from ovml.model import OpenVocabularyModel
from ovml.prompts import TemplatePrompt
from ovml.utils.errors import UserError
from ovml.utils.images import ImageLike
from ovml.utils.tensors import check_scores
from ovml.vocabulary import LabelVocabulary

SAMPLE = 512
"""Images whose features are kept for the threshold, those of patches in half precision: 100 MB of a ViT-B/16."""
SAME = 1e-4
"""Largest difference between embeddings of one image, relative to their size."""


def adapt(
    model: OpenVocabularyModel,
    images: Iterable[ImageLike],
    labels: Sequence[str] | LabelVocabulary | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
    expected: float | None = None,
    pool: str = "",
) -> Adapted:
    """Fit a model on images without labels, in one pass; what is fitted is saved with the model.

    Its head is fitted, if it is a `PoolFitted` that needs it, and a threshold is found, if a number of labels is
    expected. The labels become the model's vocabulary. Never take the images that results are reported on, or say so.

    Args:
        model: See above.
        images: See `Tagger.tag`.
        labels: Labels that it is fitted for. Default: the model's vocabulary.
        batch_size: Images per batch.
        num_workers: Threads that read images; see `Tagger`.
        expected: Mean number of labels that an image has. The threshold is the score that so many labels of an image
            reach on average, over at most 512 of the images, drawn at random.
        pool: What the images are called in the model card, such as their folder.

    Returns:
        The number of images, which is also kept as `model.adapted`.

    Raises:
        UserError: There is nothing to fit, or there are too few images, or all are alike.

    Example:
        >>> from PIL import Image
        >>> from ovml.heads import GaussianHead
        >>> model = OpenVocabularyModel("ovml-demo", ["red circle", "blue star"], head=GaussianHead(per_label=8))
        >>> pool = [Image.effect_mandelbrot((80, 80), (-2, -1.5, i, 1.5), 40).convert("RGB") for i in range(1, 5)]
        >>> adapt(model, pool, pool="fractals").summary()
        '4 images of fractals, without labels'
    """
    if model.looks_again:
        raise UserError("scoring: a second look is neither fitted nor saved with a model; take piaa or sparc")
    head = fitted_part(model.head)
    if head is None and expected is None:
        raise UserError(
            f"head: a {type(model.head).__name__} is not fitted on images without labels; take GaussianHead, or give "
            "the expected number of labels of an image, for a threshold"
        )
    tagger = Tagger(model, labels, batch_size=batch_size, num_workers=num_workers)
    if expected is not None:
        check_expected(expected, len(tagger.labels))
    bare = TemplatePrompt("{}").bind(model.prompt.text_encoder)

    def embed(texts: Sequence[str]) -> Tensor:
        return bare.embed(tuple(texts))

    sample, unreadable = Sample(SAMPLE), 0
    with inference(model), torch.inference_mode(False), torch.no_grad():
        label_embeds = tagger.label_embeds()
        if head is not None:
            head.begin(tagger.vocabulary, label_embeds, embed)
        for batch in tagger.batches(images):
            readable = [pixels for _, pixels in batch if isinstance(pixels, Tensor)]
            unreadable += len(batch) - len(readable)
            if readable:
                features = model.encode_images(torch.stack(readable).to(model.device))
                finished = widened(features.for_labels(label_embeds))
                sample.add(finished)
                if head is not None:
                    head.observe(finished)
        _check_several(sample, unreadable)
        if head is not None:
            head.finish()
        threshold = None
        if expected is not None:
            scores = torch.cat([model.score(one, label_embeds) for one in sample.features(label_embeds)])
            check_scores(scores)
            threshold = ScoreThreshold.of(scores, expected, tagger.vocabulary)
    if head is not None:
        model.calibration = None  # of other scores
    model.vocabulary = tagger.vocabulary
    model.adapted = Adapted(sample.seen, unreadable, pool, threshold)
    return model.adapted


def _check_several(sample: Sample, unreadable: int) -> None:
    """Check that the images tell something.

    Raises:
        UserError: There are fewer than two, or the model cannot tell them apart.
    """
    if sample.seen < 2:
        lost = f", {unreadable:,} could not be read" if unreadable else ""
        raise UserError(
            f"images: {sample.seen} {'is' if sample.seen == 1 else 'are'} too few to fit on{lost}; give a hundred or "
            "more, if you have them"
        )
    embeds = torch.stack([whole for whole, _ in sample.kept])
    if float((embeds - embeds[0]).abs().max()) <= SAME * float(embeds.abs().max()):
        raise UserError(f"images: all {sample.seen:,} are alike to the model, so they tell nothing; give others")


class Sample:
    """Features of images that are drawn from a stream, each with the same chance.

    Args:
        most: Number of images that are kept.

    Example:
        >>> sample = Sample(2)
        >>> for _ in range(3):
        ...     sample.add(ImageFeatures(torch.randn(4, 8), torch.randn(4, 9, 8)))
        >>> sample.seen, len(sample.kept)
        (12, 2)
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen = 0
        self.kept: list[tuple[Tensor, Tensor]] = []
        self._draw = random.Random(0)

    def add(self, features: ImageFeatures) -> None:
        """Take in a batch."""
        for one in zip(*features, strict=True):
            place = self.seen if self.seen < self.most else self._draw.randrange(self.seen + 1)
            self.seen += 1
            if place < self.most:
                whole, patches = (tensor.detach().cpu() for tensor in one)
                self.kept[place : place + 1] = [(whole.clone(), patches.half())]

    def features(self, like: Tensor) -> Iterator[ImageFeatures]:
        """What was kept, in batches of 32 in float32, where the tensor `like` is."""
        for start in range(0, len(self.kept), 32):
            some = zip(*self.kept[start : start + 32], strict=True)
            yield ImageFeatures(*(torch.stack(list(tensors)).float().to(like.device) for tensors in some))
