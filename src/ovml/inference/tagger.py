"""Tagging: rank labels for images."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor, nn

from ovml.inference.batches import OnItsWay, one_ahead, read_ahead, to_device
from ovml.inference.second_pass import SecondPass
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


class _Best(NamedTuple):
    """Best labels of a batch.

    Attributes:
        packed: `[R, 2 K + 1]`: scores, columns, and whether a score of the batch is NaN.
        scores: All scores, which an error looks at.
    """

    packed: OnItsWay
    scores: Tensor


T = TypeVar("T")
Prepared = list[tuple[ImageLike, "Tensor | UserError"]]


class Tagger:
    """Ranks a fixed list of labels for any number of images. The labels are embedded once.

    Args:
        model: Scores the images.
        labels: Label names or a vocabulary. Default: the model's own.
        top_k: Maximum number of labels per image; `None` for all.
        batch_size: Images per batch. Default: 32 on a CPU, 256 on CUDA.
        threshold: Minimum score (or probability) of returned labels; an image may have none. `calibrated`: the
            threshold that the model's calibration has for each label. `auto`: the score that `ovml.inference.adapt`
            found for the expected number of labels, else `calibrated`.
        num_workers: Threads that read images while the model runs; 0 reads them in between. Default: one per core, at
            most eight; sixteen beside CUDA.
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
        batch_size: int | None = None,
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
        self.scorer: Any = SecondPass(model) if model.looks_again else model
        self.vocabulary = model.vocabulary_of(labels)
        self.labels = self.vocabulary.names
        self.top_k = len(self.labels) if top_k is None else min(top_k, len(self.labels))
        on_cuda = model.device.type == "cuda"
        self.batch_size = default_batch_size(model.device) if batch_size is None else batch_size
        adapted = model.adapted if threshold == "auto" and not probabilities else None
        self.score_threshold = None if adapted is None else adapted.threshold
        if self.score_threshold is not None and prompt is not None:
            raise UserError(
                "threshold: auto is of the model's own prompt; leave out prompt, or run 'ovml adapt' with it"
            )
        if threshold == "auto" and self.score_threshold is None:
            if model.calibration is None and not probabilities:
                raise UserError(
                    "threshold: auto needs a threshold of the model's own; run 'ovml adapt' with an expected number of "
                    "labels, which needs no labelled image, or validate the model on labelled images"
                )
            threshold = "calibrated"
        self.threshold = threshold
        self.num_workers = min(os.cpu_count() or 1, 16 if on_cuda else 8) if num_workers is None else num_workers
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
        self._columns: dict[torch.device, list[Tensor]] = {}
        scored = self.vocabulary.extended(floor, "floor") if floor else self.vocabulary
        self._with_floor = len(scored)
        own = self.calibration or self.score_threshold
        self._scored = scored if own is None else own.together(scored)
        self._launched_ahead = 1 if on_cuda else 0

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

        At most two batches are taken ahead from `images`, which may be an endless stream; on CUDA one more, which the
        device works on while the labels of a batch are yielded.

        Args:
            images: Paths, bytes, open files, PIL images, arrays and tensors; see `ovml.utils.images.load_image`.
            on_error: For an image that cannot be read, `raise` the error, or yield it as a `row` instead of labels.

        Raises:
            UserError: An image cannot be read, or `images` is a single image.
        """
        for batch, best in self._launched(images, self._best):
            ranked = iter(() if best is None else self._rank(best))
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
        for batch, scores in self._launched(images, lambda scores: OnItsWay(scores[:, : len(self.labels)])):
            for _, pixels in batch:
                if not isinstance(pixels, Tensor):
                    raise pixels
            if scores is not None:
                rows.append(scores.arrived())
                self._check(rows[-1])
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
            **({} if self.scorer is self.model else {"scorer": repr(self.scorer)}),
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

    def _launched(
        self, images: Iterable[ImageLike], finish: Callable[[Tensor], T]
    ) -> Iterator[tuple[Prepared, T | None]]:
        """Yield batches of images with what `finish` makes of the scores `[R, L + F]` of those that can be read.

        The scores are of labels and floors. The device may still work on them when a batch is yielded.
        """
        if is_one_image(images):
            raise UserError("images: expected several images, got one; write [image]")
        label_embeds = self.label_embeds()

        def launch(batch: Prepared) -> T | None:
            readable = [pixels for _, pixels in batch if isinstance(pixels, Tensor)]
            if not readable:
                return None
            with inference(self.model):
                return finish(self._score(to_device(readable, self.model.device), label_embeds))

        return one_ahead(launch, self.batches(images), self._launched_ahead)

    def batches(self, images: Iterable[ImageLike]) -> Iterator[Prepared]:
        """Yield batches of images with their pixels as bytes; the next batch is read while the caller works."""
        return read_ahead(images, self._read, self.batch_size, self.num_workers)

    def _read(self, image: ImageLike) -> Tensor | UserError:
        return read_image(image, self.transform, self.allow_urls)

    def transform(self, image: Image.Image) -> Tensor:
        """Bytes `[3, S, S]` of an RGB image, resized and cropped; the model normalizes them on its device."""
        return self.model.image_processor.pixels(image)

    def rank(self, pixels: Tensor, label_embeds: Tensor) -> list[list[LabelScore]]:
        """The ranked labels of pixels that were read elsewhere.

        Args:
            pixels: `[B, 3, S, S]` on any device, normalized, or bytes.
            label_embeds: Output of `label_embeds`.

        Raises:
            UserError: A score is NaN.
        """
        with inference(self.model):
            return self._rank(self._best(self._score(pixels.to(self.model.device), label_embeds)))

    def _score(self, pixels: Tensor, label_embeds: Tensor) -> Tensor:
        """Scores `[B, L + F]`, or probabilities, of images on the model's device."""
        scores = self.scorer.score(self.scorer.encode_images(pixels), label_embeds)[:, : self._with_floor]
        return scores if self.calibration is None else self.calibration.probabilities(scores)

    def _best(self, scores: Tensor) -> _Best:
        """Choose the best labels on the device: no more than them and one number go to the host."""
        if scores.device not in self._columns:  # made once: a list that is copied to a device would wait for it
            self._columns[scores.device] = [torch.tensor(group, device=scores.device) for group in self._groups]
        left = best_of_groups(above_floor(scores, len(self.labels)), self._columns[scores.device])
        best = left.topk(self.top_k)
        broken = scores.isnan().any().expand(len(scores), 1)
        # Columns are whole numbers, which floats hold up to 16 million.
        packed = torch.cat([best.values, best.indices.to(scores.dtype), broken.to(scores.dtype)], dim=1)
        return _Best(OnItsWay(packed), scores)

    def _check(self, scores: Tensor) -> None:
        """Raise a `UserError` if a score is NaN."""
        if self.model.dtype == torch.float16 and scores.isnan().any():
            raise UserError("precision fp16: this model has numbers beyond its range; take bf16 or float32")
        check_scores(scores)

    def _rank(self, best: _Best) -> list[list[LabelScore]]:
        rows = best.packed.arrived().tolist()
        if any(row[-1] for row in rows):
            self._check(best.scores)
        return [
            [
                LabelScore(self.labels[c], s)
                for s, c in zip(row[: self.top_k], map(int, row[self.top_k : -1]), strict=True)
                if s >= self._minimum[c]
            ]
            for row in rows
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


def default_batch_size(device: torch.device | str) -> int:
    """Images per batch, enough to keep a device busy.

    >>> default_batch_size("cpu"), default_batch_size("cuda:0")
    (32, 256)
    """
    return 256 if torch.device(device).type == "cuda" else 32


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
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _describe(part: Part) -> str:
    return f"{class_path(type(part))} {part!r}"
