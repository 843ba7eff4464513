"""What the patches of a picture say of a label, and where in the picture they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovml.data.transforms import EvalTransform
from ovml.encoders import ImageFeatures
from ovml.heads import Head, TwoStreamHead
from ovml.heads.base import normalize_over_labels
from ovml.heads.global_ import global_scores
from ovml.heads.local import local_scores
from ovml.utils.errors import UserError

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class PatchGrid:
    """The place of the patches in a picture.

    Attributes:
        size: Width and height of the picture in pixels.
        side: Patches in a row, and rows.
        box: Left, top, right, bottom of what the patches cover, in pixels of the picture. It may reach beyond it.
    """

    size: tuple[int, int]
    side: int
    box: Box

    @classmethod
    def of(cls, size: tuple[int, int], transform: EvalTransform, patch_size: int) -> PatchGrid:
        """The grid of a picture of this size: the transform resizes it and cuts a square from its middle.

        Args:
            size: Width and height of the picture.
            transform: What the picture goes through before the vision tower.
            patch_size: Side of a patch in pixels of the cut.

        Example:
            >>> from ovml.encoders.checkpoints import ImageSpec
            >>> PatchGrid.of((200, 100), EvalTransform(ImageSpec(64)), 8).box
            (50.0, 0.0, 150.0, 100.0)
        """
        crop = transform.spec.size
        side = crop // patch_size
        resized = transform.resized(*size)  # in whole pixels: the two directions are scaled a little differently
        (x0, x1), (y0, y1) = (
            [(start := (now - crop) // 2) * before / now, (start + side * patch_size) * before / now]
            for before, now in zip(size, resized, strict=True)
        )
        return cls(size, side, (x0, y0, x1, y1))

    def patch_box(self, patch: int) -> Box:
        """Left, top, right, bottom of a patch, in pixels of the picture; patches are counted row by row."""
        (row, column), (x0, y0, x1, y1) = divmod(patch, self.side), self.box
        width, height = (x1 - x0) / self.side, (y1 - y0) / self.side
        left, top = x0 + column * width, y0 + row * height
        return left, top, left + width, top + height

    def spread(self, values: np.ndarray[Any, Any], size: tuple[int, int] | None = None) -> np.ndarray[Any, Any]:
        """Lay values of the patches over the picture, linear between the patches' centres.

        Args:
            values: One per patch, `[P]`.
            size: Width and height of the map. Default: the picture's own.

        Returns:
            A map `[H, W]`, NaN where the picture is outside of the patches.
        """
        width, height = size or self.size
        x = _weights(width, self.size[0], self.box[0], self.box[2], self.side)
        y = _weights(height, self.size[1], self.box[1], self.box[3], self.side)
        spread: np.ndarray[Any, Any] = y @ values.reshape(self.side, self.side) @ x.T
        return spread


def _weights(pixels: int, length: int, start: float, end: float, side: int) -> np.ndarray[Any, Any]:
    """Share `[pixels, side]` that each patch has in each pixel of one direction; rows outside of the grid are NaN."""
    place = ((np.arange(pixels) + 0.5) * length / pixels - start) / (end - start) * side
    weights: np.ndarray[Any, Any] = np.clip(
        1 - np.abs(np.clip(place - 0.5, 0, side - 1)[:, None] - np.arange(side)), 0, 1
    )
    weights[(place < 0) | (place > side)] = np.nan
    return weights


@dataclass(frozen=True)
class LabelEvidence:
    """How a picture fits one label.

    Attributes:
        label: The label.
        score: What the model's head gives, by which labels are ranked.
        global_score: Of the class token alone; normalised over the labels as the two-stream head does it.
        local_score: Of the best patches alone, the same way.
        similarity: Dot product of each patch with the label, `[P]`.
        patches: The patches that the local stream averages, best first.
    """

    label: str
    score: float
    global_score: float
    local_score: float
    similarity: np.ndarray[Any, Any]
    patches: tuple[int, ...]


@torch.inference_mode()
def find_evidence(
    features: ImageFeatures, label_embeds: Tensor, labels: Sequence[str], head: Head, top_k: int | None = None
) -> list[LabelEvidence]:
    """Score one picture against labels, and find for each the patches that the local stream averages.

    Args:
        features: Of one picture: `[1, D]` and `[1, P, D]`.
        label_embeds: `[L, D]`.
        labels: Their names.
        head: The model's head. Where it has no local stream, the patches are those that MKT's would average.
        top_k: Labels to keep. Default: all.

    Returns:
        Best first.

    Raises:
        UserError: There is not one picture, or not one name per embedding.
    """
    if len(features.global_embeds) != 1 or len(labels) != len(label_embeds):
        raise UserError(
            f"expected one picture and a name per label embedding; got {len(features.global_embeds)} pictures, "
            f"{len(labels)} names and {len(label_embeds)} embeddings"
        )
    num_patches = features.patch_embeds.shape[1]
    default = TwoStreamHead(max(1, round(num_patches * 16 / 196)))
    num_best = int(getattr(head, "top_k", default.top_k))
    streams = [global_scores(features, label_embeds), local_scores(features, label_embeds, num_best)]
    if getattr(head, "normalize", True):
        streams = [normalize_over_labels(stream) for stream in streams]
    whole, local = (stream[0].tolist() for stream in streams)
    scores = head(features, label_embeds)[0].float()
    evidence = []
    for column in scores.argsort(descending=True, stable=True)[:top_k].tolist():
        similarity = features.patch_embeds[0] @ label_embeds[column]
        best = similarity.argsort(descending=True, stable=True)[:num_best].tolist()
        found = similarity.float().cpu().numpy()
        evidence.append(
            LabelEvidence(labels[column], float(scores[column]), whole[column], local[column], found, tuple(best))
        )
    return evidence
