"""Augmentation of training images, without torchvision."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

from ovml.data.rand_augment import RandAugment
from ovml.encoders.image_processor import ImageProcessor


class TrainTransform:
    """Random resized crop, horizontal flip and, where asked for, RandAugment; random numbers are torch's.

    Args:
        processor: Size, resampling and normalization.
        scale: Minimum and maximum share of the image area that a crop covers.
        ratio: Minimum and maximum width-to-height ratio of a crop.
        flip: Probability of a horizontal flip.
        rand_augment: Random operations on the crop. Areas that they bring in from outside have the colour of the
            normalization mean, as in timm.

    Example:
        >>> TrainTransform(ImageProcessor(64))(Image.new("RGB", (80, 120))).shape
        torch.Size([3, 64, 64])
    """

    def __init__(
        self,
        processor: ImageProcessor,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        rand_augment: RandAugment | None = None,
    ) -> None:
        self.processor = processor
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.rand_augment = rand_augment

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into pixel values `[3, size, size]`."""
        size = (self.processor.size, self.processor.size)
        image = image.resize(size, Image.Resampling(self.processor.resample), box=self.crop_box(*image.size))
        if torch.rand(()).item() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment is not None:
            red, green, blue = (round(255 * value) for value in self.processor.mean)
            image = self.rand_augment(image, fill=(red, green, blue))
        return self.processor.normalize(image)

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
