"""Inference: images in, ranked labels out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from ovml.errors import UserError
from ovml.images import ImageLike, load_image

if TYPE_CHECKING:
    from ovml.classifier import OVMultiLabelClassifier
    from ovml.vocabulary import LabelVocabulary


class LabelScore(NamedTuple):
    """A label and how well it fits; scores rank labels of one image and are no probabilities."""

    label: str
    score: float


class Tagger:
    """Ranks a fixed list of labels for any number of images; the labels are embedded once.

    Args:
        model: The classifier.
        labels: Label names or a vocabulary. Default: the model's own.
        top_k: Labels per image; `None` for all.
        batch_size: Images run at once.

    Raises:
        UserError: `top_k` is less than 1, or there are no proper labels.

    Example:
        >>> from PIL import Image
        >>> from ovml import OVMultiLabelClassifier
        >>> tagger = Tagger(OVMultiLabelClassifier("ovml-demo"), ("red circle", "blue star"), top_k=1)
        >>> len(list(tagger.tag([Image.new("RGB", (80, 80))] * 3)))
        3
    """

    def __init__(
        self,
        model: OVMultiLabelClassifier,
        labels: Sequence[str] | LabelVocabulary | None = None,
        top_k: int | None = 5,
        batch_size: int = 32,
    ) -> None:
        from ovml.data.transforms import EvalTransform

        if top_k is not None and top_k < 1:
            raise UserError(f"top_k must be at least 1; got {top_k}")
        self.model = model
        self.vocabulary = model.vocabulary_of(labels)
        self.labels = self.vocabulary.names
        self.top_k = len(self.labels) if top_k is None else min(top_k, len(self.labels))
        self.batch_size = batch_size
        self.transform = EvalTransform(model.image_spec)

    def tag(self, images: Iterable[ImageLike]) -> Iterator[tuple[ImageLike, list[LabelScore]]]:
        """Yield each image with its ranked labels, batch by batch, in order.

        Raises:
            UserError: An image cannot be read.
        """
        iterator = iter(images)
        while batch := list(islice(iterator, self.batch_size)):
            yield from zip(batch, self._rank(batch), strict=True)

    def _rank(self, images: Sequence[ImageLike]) -> list[list[LabelScore]]:
        pixels = torch.stack([self.transform(load_image(image)) for image in images])
        training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            logits = self.model(pixels.to(self.model.device), self.vocabulary).float()
        self.model.train(training)
        best = logits.topk(self.top_k)
        rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [[LabelScore(self.labels[c], s) for s, c in zip(*row, strict=True)] for row in rows]


def load_model(name: str | Path) -> OVMultiLabelClassifier:
    """Load a trained model or a plain CLIP checkpoint.

    Args:
        name: A run folder or checkpoint that `ovml fit` wrote, or the name of a CLIP checkpoint (`ovml-demo`, a
            folder, a Hub name), which is then used zero-shot.

    Raises:
        UserError: There is no such model, or it cannot be read.
    """
    from ovml.classifier import OVMultiLabelClassifier
    from ovml.training import RunFolder

    path = Path(name)
    if path.is_dir() and (path / "config.yaml").is_file():
        path = RunFolder(path).newest_checkpoint()
    if path.is_file():
        return OVMultiLabelClassifier.from_checkpoint(path).eval()
    if path.suffix == ".ckpt":
        raise UserError(f"{path}: no such checkpoint; check the path")
    return OVMultiLabelClassifier(str(name), stages=[]).eval()
