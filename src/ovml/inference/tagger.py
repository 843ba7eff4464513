"""Tagging: rank labels for images."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor, nn

from ovml.inference.selection import above_floor, best_of_groups
from ovml.inference.tag_output import Written, write_tags
from ovml.model import OpenVocabularyModel
from ovml.prompts import PromptLearner, TemplatePrompt
from ovml.utils.errors import UserError
from ovml.utils.images import ImageLike, is_one_image, load_image
from ovml.utils.parts import Part, class_path
from ovml.utils.tensors import check_scores, digest
from ovml.vocabulary import LabelVocabulary, group_columns


class LabelScore(NamedTuple):
    """A label and its score, which ranks the labels of one image, or its calibrated probability.

    >>> LabelScore("red circle", 0.7).label
    'red circle'
    """

    label: str
    score: float


T = TypeVar("T")
Prepared = list[tuple[ImageLike, "Tensor | UserError"]]


class Tagger:
    """Ranks a fixed list of labels for any number of images. The labels are embedded once.

    Args:
        model: Scores the images.
        labels: Label names or a vocabulary. Default: the model's own.
        top_k: Maximum number of labels per image; `None` for all.
        batch_size: Images per batch.
        threshold: Minimum score (or probability) of returned labels; an image may have none. `calibrated`: the
            threshold that the model's calibration has for each label. `auto`: the score that `ovml.inference.adapt`
            found for the expected number of labels, else `calibrated`.
        num_workers: Threads that read images while the model runs; 0 reads them in between. Default: one per core, at
            most eight.
        prompt: Replaces the model's own prompt: a template such as `"a photo of a {}"`, several templates, whose
            embeddings are averaged, or a `PromptLearner`.
        probabilities: Return calibrated probabilities instead of scores. The labels are scored together with those of
            the calibration; see `ovml.metrics.Calibration`.
        allow_urls: Download images that are given as `http://` or `https://` addresses.
        exclusive: Groups of labels of which only the best is returned, such as `[["indoor", "outdoor"]]`.
        floor: Neutral names, such as `["photo", "image"]`, which are scored too: only labels that score higher than
            each of them are returned. An image for which there is none shows none of these labels.

    Raises:
        UserError: `top_k` or `batch_size` is below 1, `num_workers` is below 0, `threshold` is not finite, a template
            has no `{}`, the labels are invalid, or the model is not calibrated and probabilities are needed.

    Example:
        >>> from PIL import Image
        >>> from ovml.model import OpenVocabularyModel
        >>> tagger = Tagger(OpenVocabularyModel("ovml-demo"), ("red circle", "blue star"), top_k=1)
        >>> len(list(tagger.tag([Image.new("RGB", (80, 80))] * 3)))
        3
    """

    def __init__(
        self,
        model: OpenVocabularyModel,
        labels: Sequence[str] | LabelVocabulary | None = None,
        top_k: int | None = 5,
        batch_size: int = 32,
        threshold: float | Literal["calibrated", "auto"] | None = None,
        num_workers: int | None = None,
        prompt: PromptLearner | str | Sequence[str] | None = None,
        probabilities: bool = False,
        allow_urls: bool = False,
        exclusive: Sequence[Sequence[str]] = (),
        floor: Sequence[str] = (),
    ) -> None:
        for name, value, least in (("top_k", top_k, 1), ("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}; got {value}")
        if isinstance(threshold, (int, float)) and not math.isfinite(threshold):
            raise UserError(f"threshold must be a finite number; got {threshold}")
        self.model = model
        self.vocabulary = model.vocabulary_of(labels)
        self.labels = self.vocabulary.names
        self.top_k = len(self.labels) if top_k is None else min(top_k, len(self.labels))
        self.batch_size = batch_size
        adapted = model.adapted if threshold == "auto" and not probabilities else None
        self.score_threshold = None if adapted is None else adapted.threshold
        if threshold == "auto" and self.score_threshold is None:
            if model.calibration is None:
                raise UserError(
                    "threshold: auto needs a threshold of the model's own; run 'ovml adapt' with an expected number of "
                    "labels, which needs no labelled image, or validate the model on labelled images"
                )
            threshold = "calibrated"
        self.threshold = threshold
        self.num_workers = min(os.cpu_count() or 1, 8) if num_workers is None else num_workers
        self.prompt = None if prompt is None else self._bound(prompt)
        self.probabilities = probabilities or threshold == "calibrated"
        self.calibration = model.calibration if self.probabilities else None
        if self.probabilities and self.calibration is None:
            asked = "probabilities" if probabilities else "threshold"
            raise UserError(
                f"{asked}: this model was never calibrated; validate it on labelled images (ovml fit does), "
                "or take its scores"
            )
        self.allow_urls = allow_urls
        self._groups = group_columns(exclusive, self.labels)
        scored = self.vocabulary.extended(floor, "floor") if floor else self.vocabulary
        self._with_floor = len(scored)
        own = self.calibration or self.score_threshold
        self._scored = scored if own is None else own.together(scored)
        self.transform = model.image_processor

    def _bound(self, prompt: PromptLearner | str | Sequence[str]) -> PromptLearner:
        prompt = prompt if isinstance(prompt, PromptLearner) else TemplatePrompt(prompt)
        return prompt if hasattr(prompt, "text_encoder") else prompt.bind(self.model.prompt.text_encoder)

    def label_embeds(self) -> Tensor:
        """Embeddings `[L, D]` of the labels, followed by those of the floor and of the calibration's other labels."""
        prompt = None if self.prompt is None else self.prompt.to(self.model.device)
        return self.model.embed_labels(self._scored, prompt)

    @overload
    def tag(
        self, images: Iterable[ImageLike], on_error: Literal["raise"] = "raise"
    ) -> Iterator[tuple[ImageLike, list[LabelScore]]]: ...

    @overload
    def tag(
        self, images: Iterable[ImageLike], on_error: Literal["row"]
    ) -> Iterator[tuple[ImageLike, list[LabelScore] | UserError]]: ...

    def tag(
        self, images: Iterable[ImageLike], on_error: Literal["raise", "row"] = "raise"
    ) -> Iterator[tuple[ImageLike, list[LabelScore] | UserError]]:
        """Yield each image with its ranked labels, in order.

        At most two batches are taken ahead from `images`, which may be an endless stream.

        Args:
            images: Paths, bytes, open files, PIL images, arrays and tensors; see `ovml.utils.images.load_image`.
            on_error: For an image that cannot be read, `raise` the error, or yield it as a `row` instead of labels.

        Raises:
            UserError: An image cannot be read, or `images` is a single image.
        """
        for batch, scores in self._score_batches(images):
            ranked = iter(self._rank(scores))
            for image, pixels in batch:
                if isinstance(pixels, Tensor):
                    yield image, next(ranked)
                elif on_error == "raise":
                    raise pixels
                else:
                    yield image, pixels

    @overload
    def predict(self, images: ImageLike) -> list[LabelScore]: ...  # type: ignore[overload-overlap]  # a path is one too

    @overload
    def predict(self, images: Sequence[ImageLike]) -> list[list[LabelScore]]: ...

    def predict(self, images: ImageLike | Sequence[ImageLike]) -> list[LabelScore] | list[list[LabelScore]]:
        """Return the ranked labels of one image, or a list of them for a list of images.

        Raises:
            UserError: An image cannot be read.
        """
        if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
            return [tags for _, tags in self.tag(images)]
        return next(self.tag([images]))[1]

    def score(self, images: Iterable[ImageLike]) -> Tensor:
        """Return the scores (or probabilities) of all labels, also of those that `tag` leaves out.

        Args:
            images: As for `tag`.

        Returns:
            `[N, L]` float32 on the CPU, rows in the order of `images`, columns in the order of `labels`.

        Raises:
            UserError: An image cannot be read, or `images` is a single image.
        """
        rows = [torch.empty(0, len(self.labels))]
        for batch, scores in self._score_batches(images):
            for _, pixels in batch:
                if not isinstance(pixels, Tensor):
                    raise pixels
            rows.append(scores[:, : len(self.labels)].cpu())
        return torch.cat(rows)

    def write(
        self,
        images: Iterable[ImageLike],
        out: str | Path,
        overwrite: bool = False,
        on_rows: Callable[[Written], None] | None = None,
    ) -> Written:
        """Tag images into a file, and resume an interrupted run of the same settings.

        Args:
            images: As for `tag`; to resume, the same images in the same order.
            out: `.jsonl`, `.csv` or `.parquet`; see `ovml.inference.tag_output`. It appears when it is complete.
            overwrite: Overwrite `out` and start over.
            on_rows: Called with the counts so far, at the start and after each batch.

        Raises:
            UserError: The file exists, cannot be written, or was begun with other settings or other images.
        """
        return write_tags(self, images, out, overwrite, on_rows)

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the result, except the images; weights and labels as digests."""
        text = self.model.prompt if self.prompt is None else self.prompt
        source = self.model.image_encoder.patch_source
        model = f"{self.model.image_processor} {_describe(self.model.head)} {source}"
        return {
            "model": digest(model, self.model.image_encoder.state_dict(), self.model.head.state_dict()),
            "prompt": digest(_describe(text), text.state_dict()),
            "labels": digest("\n".join([*self.labels, *self.vocabulary.texts])),
            "top_k": self.top_k,
            "threshold": self.threshold,
            "exclusive": self._groups,
            "floor": list(self._scored.names[len(self.labels) : self._with_floor]),
            **({} if self.calibration is None else {"calibration": digest(json.dumps(self.calibration.to_dict()))}),
            **({} if self.score_threshold is None else {"score_threshold": digest(repr(self.score_threshold))}),
        }

    def _score_batches(self, images: Iterable[ImageLike]) -> Iterator[tuple[Prepared, Tensor]]:
        """Yield batches of images with the scores `[R, L + F]` of those that can be read: of labels and floors."""
        if is_one_image(images):
            raise UserError("images: expected several images, got one; write [image]")
        label_embeds = self.label_embeds()
        for batch in self.batches(images):
            readable = [pixels for _, pixels in batch if isinstance(pixels, Tensor)]
            none = torch.empty(0, self._with_floor)
            yield batch, self._score(torch.stack(readable), label_embeds) if readable else none

    def batches(self, images: Iterable[ImageLike]) -> Iterator[Prepared]:
        """Yield batches of images with their pixel values; the next batch is read while the caller works."""
        rest = iter(images)
        if self.num_workers == 0:
            while read := [(image, self._read(image)) for image in islice(rest, self.batch_size)]:
                yield read
            return
        pool = ThreadPoolExecutor(self.num_workers)
        ahead: deque[tuple[ImageLike, Future[Tensor | UserError]]] = deque()
        try:
            while True:
                for image in islice(rest, 2 * self.batch_size - len(ahead)):
                    ahead.append((image, pool.submit(self._read, image)))
                if not ahead:
                    return
                batch = [ahead.popleft() for _ in range(min(self.batch_size, len(ahead)))]
                yield [(image, future.result()) for image, future in batch]
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, image: ImageLike) -> Tensor | UserError:
        return read_image(image, self.transform, self.allow_urls)

    def _score(self, pixels: Tensor, label_embeds: Tensor) -> Tensor:
        model = self.model
        with inference(model):
            features = model.encode_images(pixels.to(model.device))
            scores = model.score(features, label_embeds)[:, : self._with_floor]
        check_scores(scores)
        return scores if self.calibration is None else self.calibration.probabilities(scores)

    def _rank(self, scores: Tensor) -> list[list[LabelScore]]:
        best = best_of_groups(above_floor(scores, len(self.labels)), self._groups).topk(self.top_k)
        return [
            [LabelScore(self.labels[c], s) for s, c in zip(*row, strict=True) if s >= self._minimum[c]]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    @cached_property
    def _minimum(self) -> list[float]:
        """Minimum score of each label."""
        if self.threshold == "calibrated" and self.calibration is not None:
            return self.calibration.thresholds(self.vocabulary).tolist()
        if self.score_threshold is not None:
            return [self.score_threshold.score] * len(self.labels)
        lowest = torch.finfo(torch.float32).min  # all scores but those of labels that are left out
        return [lowest if self.threshold is None else max(lowest, float(self.threshold))] * len(self.labels)


def read_image(image: ImageLike, transform: Callable[[Image.Image], T], allow_urls: bool = False) -> T | UserError:
    """Read and transform an image; returns the error of one that cannot be read."""
    try:
        return transform(load_image(image, allow_urls=allow_urls))
    except UserError as error:
        return error
    except Exception as error:  # Pillow raises errors of any type on malformed images
        name = image if isinstance(image, (str, os.PathLike)) else "image"
        wrapped = UserError(f"{name}: broken image ({type(error).__name__}: {error}); replace the file")
        wrapped.__cause__ = error
        return wrapped


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode and without gradients, and restore the mode of each of its modules."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _describe(part: Part) -> str:
    return f"{class_path(type(part))} {part!r}"
