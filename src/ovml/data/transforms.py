"""From a PIL image to a tensor, without torchvision."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovml.data.rand_augment import RandAugment
from ovml.encoders.checkpoints import ImageSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EvalTransform:
    """Resize of the short side, centre crop, normalisation; as CLIP's own image processor does it.

    Where the specification says `squash`, as SigLIP's does, both sides are resized.

    Args:
        spec: Size, normalisation and how to resize.

    Example:
        >>> EvalTransform(ImageSpec(64, (0.5,) * 3, (0.5,) * 3))(Image.new("RGB", (80, 120))).shape
        torch.Size([3, 64, 64])
    """

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into pixel values `[3, size, size]`."""
        size, (width, height) = self.spec.size, self.resized(*image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling(self.spec.resample))
        left, top = (width - size) // 2, (height - size) // 2
        return normalize(image.crop((left, top, left + size, top + size)), self.spec)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture after the resize and before the crop.

        >>> EvalTransform(ImageSpec(64)).resized(100, 200), EvalTransform(ImageSpec(64, squash=True)).resized(100, 200)
        ((64, 128), (64, 64))
        """
        side = self.spec.short_side
        if self.spec.squash:
            return side, side
        scale = side / min(width, height)
        # The long side is cut to whole pixels, as transformers does.
        return (side, int(height * scale)) if width <= height else (int(width * scale), side)


class TrainTransform:
    """Random resized crop, horizontal flip and, where asked for, RandAugment; random numbers are torch's.

    Args:
        spec: Size and normalisation.
        scale: Least and greatest share of the picture's area that a crop takes.
        ratio: Least and greatest width-to-height ratio of a crop.
        flip: Chance of a horizontal flip.
        rand_augment: Random operations on the crop. What they bring in from outside it has the colour of the mean that
            normalisation takes off, as in timm.

    Example:
        >>> TrainTransform(ImageSpec(64, (0.5,) * 3, (0.5,) * 3))(Image.new("RGB", (80, 120))).shape
        torch.Size([3, 64, 64])
    """

    def __init__(
        self,
        spec: ImageSpec,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        rand_augment: RandAugment | None = None,
    ) -> None:
        self.spec = spec
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.rand_augment = rand_augment

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into pixel values `[3, size, size]`."""
        size = (self.spec.size, self.spec.size)
        image = image.resize(size, Image.Resampling(self.spec.resample), box=self.crop_box(*image.size))
        if torch.rand(()).item() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment is not None:
            red, green, blue = (round(255 * value) for value in self.spec.mean)
            image = self.rand_augment(image, fill=(red, green, blue))
        return normalize(image, self.spec)

    def crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Draw a crop `(left, top, right, bottom)` of random area and ratio (Szegedy et al., 2015)."""
        for _ in range(10):
            area = width * height * torch.empty(()).uniform_(*self.scale).item()
            ratio = math.exp(torch.empty(()).uniform_(math.log(self.ratio[0]), math.log(self.ratio[1])).item())
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(torch.randint(width - w + 1, ()))
                top = int(torch.randint(height - h + 1, ()))
                return left, top, left + w, top + h
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side


def normalize(image: Image.Image, spec: ImageSpec) -> Tensor:
    """Pixel values `[3, H, W]`, contiguous: `(rgb / 255 - mean) / std`, as `rgb * scale + shift`."""
    scale, shift = _scale_and_shift(tuple(spec.mean), tuple(spec.std))
    # Channels first while the values are single bytes: moving floats would cost more.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels.float().mul_(scale).add_(shift)


@lru_cache
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    means, stds = (torch.tensor(values, dtype=torch.float64, device="cpu").view(3, 1, 1) for values in (mean, std))
    return (1 / (255 * stds)).float(), (-means / stds).float()
