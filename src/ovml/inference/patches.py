"""Which patches of an image match a label, and where in the image they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovml.encoders import Features, widened
from ovml.encoders.image_processor import ImageProcessor
from ovml.heads import Head, TwoStreamHead
from ovml.heads.base import normalize_over_labels
from ovml.heads.global_ import global_scores
from ovml.heads.local import local_scores
from ovml.inference.tagger import Tagger, inference
from ovml.utils.errors import UserError
from ovml.utils.tensors import full_precision

Box = tuple[float, float, float, float]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PatchGrid:
    """Position of the patches in an image.

    Attributes:
        size: Width and height of the image in pixels.
        side: Number of patches per row, and of rows.
        box: Left, top, right, bottom of the area that the patches cover, in pixels of the image. It may extend beyond
            the image.
    """

    size: tuple[int, int]
    side: int
    box: Box

    @classmethod
    def of(cls, size: tuple[int, int], processor: ImageProcessor, patch_size: int) -> PatchGrid:
        """Compute the grid of an image.

        Args:
            size: Width and height of the image.
            processor: Resizes the image and crops a square from its center.
            patch_size: Side of a patch in pixels of the crop.

        Example:
            >>> PatchGrid.of((200, 100), ImageProcessor(64), 8).box
            (50.0, 0.0, 150.0, 100.0)
        """
        side = processor.size // patch_size
        resized = processor.resized(*size)  # in whole pixels: the two directions are scaled a little differently
        (x0, x1), (y0, y1) = (
            [(start := processor.crop_start(now)) * before / now, (start + side * patch_size) * before / now]
            for before, now in zip(size, resized, strict=True)
        )
        return cls(size, side, (x0, y0, x1, y1))

    @property
    def crops(self) -> bool:
        """Whether a part of the image lies outside the grid."""
        x0, y0, x1, y1 = self.box
        return x0 >= 1 or y0 >= 1 or x1 <= self.size[0] - 1 or y1 <= self.size[1] - 1

    def patch_box(self, patch: int) -> Box:
        """Left, top, right, bottom of a patch in pixels of the image; patches are numbered row by row."""
        (row, column), (x0, y0, x1, y1) = divmod(patch, self.side), self.box
        width, height = (x1 - x0) / self.side, (y1 - y0) / self.side
        left, top = x0 + column * width, y0 + row * height
        return left, top, left + width, top + height

    def spread(self, values: Array, size: tuple[int, int] | None = None) -> Array:
        """Interpolate values of the patches linearly between the centers of the patches.

        Args:
            values: One per patch, `[P]`.
            size: Width and height of the map. Default: the image's.

        Returns:
            A map `[H, W]`, NaN outside the grid.
        """
        width, height = size or self.size
        x = _weights(width, self.size[0], self.box[0], self.box[2], self.side)
        y = _weights(height, self.size[1], self.box[1], self.box[3], self.side)
        spread: Array = y @ values.reshape(self.side, self.side) @ x.T
        return spread


def _weights(pixels: int, length: int, start: float, end: float, side: int) -> Array:
    """Weight `[pixels, side]` of each patch in each pixel of one direction; NaN outside the grid."""
    place = ((np.arange(pixels) + 0.5) * length / pixels - start) / (end - start) * side
    weights: Array = np.clip(1 - np.abs(np.clip(place - 0.5, 0, side - 1)[:, None] - np.arange(side)), 0, 1)
    weights[(place < 0) | (place > side)] = np.nan
    return weights


@dataclass(frozen=True)
class LabelEvidence:
    """Scores of a label in an image, and the patches behind them.

    Attributes:
        label: The label.
        score: The head's score, by which labels are ranked.
        global_score: Score of the class token alone, normalised over the labels as in `TwoStreamHead`.
        local_score: Score of the best patches alone, normalised likewise.
        similarity: Dot product of each patch with the label, `[P]`.
        patches: The patches that the local stream averages, best first.
    """

    label: str
    score: float
    global_score: float
    local_score: float
    similarity: Array
    patches: tuple[int, ...]


def find_labels(tagger: Tagger, image: Image.Image, top_k: int | None = None) -> tuple[PatchGrid, list[LabelEvidence]]:
    """Score an image against the tagger's labels, and find the patches that match each.

    Args:
        tagger: Model, labels and prompt.
        image: RGB.
        top_k: Number of labels to keep. Default: all.

    Returns:
        The grid of the patches, and the labels, best first.
    """
    model = tagger.model
    patch_size = int(model.image_encoder.vision_model.config.patch_size)
    grid = PatchGrid.of(image.size, model.image_processor, patch_size)
    with inference(model):
        pixels = model.image_processor(image)[None].to(model.device)
        features, label_embeds, scorer = model.encode_images(pixels), tagger.label_embeds(), tagger.scorer
        scores = scorer.score(features if scorer is model else scorer.encode_images(pixels), label_embeds)
        return grid, find_evidence(features, label_embeds, tagger.labels, model.head, top_k, scores)


@torch.inference_mode()
def find_evidence(
    features: Features,
    label_embeds: Tensor,
    labels: Sequence[str],
    head: Head,
    top_k: int | None = None,
    scores: Tensor | None = None,
) -> list[LabelEvidence]:
    """Score the features of one image against labels, and find the patches that the local stream averages.

    Args:
        features: Features of one image: `[1, D]` and `[1, P, D]`.
        label_embeds: `[L, D]`; or pairs `[L, 2, D]`, of which the present embeddings are compared with the patches.
        labels: `L` names.
        head: The model's head. If it has no local stream, the patches are those that MKT's head would average.
        top_k: Number of labels to keep. Default: all.
        scores: Logits `[1, L]`. Default: those that the head gives.

    Returns:
        The labels, best first.

    Raises:
        UserError: There is more than one image, or the numbers of names and embeddings differ.
    """
    if len(features.global_embeds) != 1 or len(labels) != len(label_embeds):
        raise UserError(
            f"expected one image and a name per label embedding; got {len(features.global_embeds)} images, "
            f"{len(labels)} names and {len(label_embeds)} embeddings"
        )
    features, label_embeds = widened(features.for_labels(label_embeds)), full_precision(label_embeds)
    num_patches = features.patch_embeds.shape[1]
    default = TwoStreamHead(max(1, round(num_patches * 16 / 196)))
    num_best = int(getattr(head, "top_k", default.top_k))
    shown = label_embeds[:, 1] if head.takes_pairs else label_embeds
    shown = shown if shown.dim() == 2 else shown[:, 0]  # of several texts the first
    streams = [global_scores(features, shown), local_scores(features, shown, num_best)]
    if getattr(head, "normalize", True):
        streams = [normalize_over_labels(stream) for stream in streams]
    whole, local = (stream[0].tolist() for stream in streams)
    scores = (head(features, label_embeds) if scores is None else scores)[0].float()
    evidence = []
    for column in scores.argsort(descending=True, stable=True)[:top_k].tolist():
        similarity = features.patch_embeds[0] @ shown[column]
        best = similarity.argsort(descending=True, stable=True)[:num_best].tolist()
        found = (labels[column], float(scores[column]), whole[column], local[column])
        evidence.append(LabelEvidence(*found, similarity.float().cpu().numpy(), tuple(best)))
    return evidence
