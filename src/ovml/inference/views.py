"""Patches averaged over views of an image: ITACLIP's image engineering."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.encoders import Features, ImageFeatures
from ovml.model import Labels, OpenVocabularyModel
from ovml.utils.errors import UserError, check_share
from ovml.utils.tensors import full_precision

BLUR, SIGMA = 11, 5.0
"""Pixels of a side of the Gaussian blur, and its standard deviation in pixels."""
GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in the grey of a pixel, as in torchvision."""
PASSES = 5
"""Passes through the tower for an image."""


class AveragedViews:
    """Scores images by patches that are averaged over views, as in ITACLIP's image engineering.

    With length-one patches `n(x)` of the image, its grey version, its blurred version, and the image flipped upside
    down and left to right, each flipped back, a patch is
    `share / 3 (n(x) + n(x_grey) + n(x_blur)) + (1 - share) / 2 (n(x_up_down) + n(x_left_right))`, not normalised again.
    So its dot product with a length-one label is the mean of the views' cosines. A head that takes cosines itself
    divides by the length of the mean again. The global embedding is that of the image itself.

    It costs five passes through the tower instead of one. It has the two methods by which a `Tagger` scores:
    `encode_images` and `score`.

    Args:
        model: Its head reads the patches; give it a patch source, such as `ITACLIP`.
        share: Share of the views that are not flipped; 0.75, and 0.7 for VOC, in ITACLIP's code.

    Raises:
        UserError: `share` is not from 0 to 1; or, when images are scored, their patches are no grid.

    Example:
        >>> from ovml.heads import PatchSoftmaxHead
        >>> model = OpenVocabularyModel("ovml-demo", ["red circle", "blue star"], head=PatchSoftmaxHead())
        >>> AveragedViews(model)(torch.zeros(3, 3, 96, 96)).shape
        torch.Size([3, 2])
    """

    def __init__(self, model: OpenVocabularyModel, share: float = 0.75) -> None:
        check_share(self, share=share)
        self.model = model
        self.share = share

    def __repr__(self) -> str:
        return f"AveragedViews(share={self.share})"

    def __call__(self, pixel_values: Tensor, labels: Labels = None) -> Tensor:
        """The head's scores `[B, L]` of normalised images `[B, 3, H, W]` and labels (default: the vocabulary)."""
        return self.score(self.encode_images(pixel_values), self.model.embed_labels(labels))

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> ImageFeatures:
        """Features of images `[B, 3, H, W]`, bytes or normalised ones, whose patches are averaged over the views."""
        pixel_values = self.model.normalized(pixel_values).to(self.model.dtype)
        views = (pixel_values, grey(pixel_values), blurred(pixel_values))
        whole, patches = zip(*map(self._features, views), strict=True)
        side = self._side(patches[0].shape[1])
        flipped = [
            self._features(pixel_values.flip(axis + 1))[1].unflatten(1, (side, side)).flip(axis).flatten(1, 2)
            for axis in (1, 2)
        ]
        mean = self.share * torch.stack(patches).mean(dim=0) + (1 - self.share) * torch.stack(flipped).mean(dim=0)
        return ImageFeatures(whole[0], mean)

    def score(self, features: Features, label_embeds: Tensor) -> Tensor:
        """The head's scores `[B, L]` of labels `[L, D]`."""
        return self.model.score(features, label_embeds)

    def _features(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Global embeddings, and patches of length one."""
        features = self.model.encode_images(pixel_values)
        if not isinstance(features, ImageFeatures):
            raise UserError("AveragedViews: the patches of this model depend on the labels; take a plain CLIP")
        return features.global_embeds, F.normalize(full_precision(features.patch_embeds), dim=-1)

    def _side(self, patches: int) -> int:
        side = math.isqrt(patches)
        if side * side != patches:
            raise UserError(f"AveragedViews: flips need patches on a square; the tower gives {patches}")
        return side


def grey(pixel_values: Tensor) -> Tensor:
    """Images `[B, 3, H, W]` as grey: of normalised pixel values, as in the published code."""
    weights = torch.tensor(GREY, dtype=pixel_values.dtype, device=pixel_values.device).view(3, 1, 1)
    return (pixel_values * weights).sum(dim=1, keepdim=True).expand_as(pixel_values)


def blurred(pixel_values: Tensor) -> Tensor:
    """Images `[B, 3, H, W]` after a Gaussian blur, the border mirrored."""
    places = torch.arange(BLUR, dtype=torch.float32, device=pixel_values.device) - BLUR // 2
    weights = torch.exp(-0.5 * (places / SIGMA).square())
    kernel = (weights / weights.sum()).to(pixel_values.dtype)
    padded = F.pad(pixel_values, (BLUR // 2,) * 4, mode="reflect").flatten(0, 1).unsqueeze(1)
    smooth = F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return smooth.view_as(pixel_values)
