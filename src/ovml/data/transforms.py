"""Augmentation of training images, without torchvision."""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ovml.data.rand_augment import RandAugment
from ovml.encoders.image_processor import ImageProcessor, image_bytes

TRIES = 10
"""Draws of a random crop, as in torchvision and timm."""


class TrainTransform:
    """Random resized crop, horizontal flip and, where asked for, cutout and RandAugment; random numbers are torch's.

    Args:
        processor: Size and resampling.
        scale: Minimum and maximum share of the image area that a crop covers; `None` for the image as in evaluation.
        ratio: Minimum and maximum width-to-height ratio of a crop.
        flip: Probability of a horizontal flip.
        cutout: Side of a square of one random color at a random place, as a share of the image's; 0 for none. Parts
            of it may lie outside of the image.
        rand_augment: Random operations on the crop. Areas that they bring in from outside have the colour of the
            normalization mean, as in timm.

    Example:
        >>> TrainTransform(ImageProcessor(64))(Image.new("RGB", (80, 120))).shape
        torch.Size([3, 64, 64])
    """

    def __init__(
        self,
        processor: ImageProcessor,
        scale: tuple[float, float] | None = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        rand_augment: RandAugment | None = None,
        cutout: float = 0.0,
    ) -> None:
        self.processor = processor
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.rand_augment = rand_augment
        self.cutout = cutout

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into bytes `[3, size, size]`."""
        image = self._cropped(image)
        if self.cutout:
            self._cut_out(image)
        if torch.rand(()).item() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment is not None:
            red, green, blue = (round(255 * value) for value in self.processor.mean)
            image = self.rand_augment(image, fill=(red, green, blue))
        return image_bytes(image)

    def _cropped(self, image: Image.Image) -> Image.Image:
        if self.scale is None:
            return self.processor.crop(image)
        size = (self.processor.size, self.processor.size)
        # Cropped first: resize(box=...) would read pixels outside of the box.
        return image.crop(self.crop_box(*image.size)).resize(size, Image.Resampling(self.processor.resample))

    def _cut_out(self, image: Image.Image) -> None:
        """Paint a square of a random color in place, with its center in the image."""
        half = round(self.cutout * image.width) // 2
        x, y = torch.randint(image.width, (2,)).tolist()
        red, green, blue = torch.randint(256, (3,)).tolist()
        ImageDraw.Draw(image).rectangle((x - half, y - half, x + half, y + half), (red, green, blue))

    def crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Draw a crop `(left, top, right, bottom)` of random area and ratio (Szegedy et al., 2015).

        If ten draws do not fit into the image, the crop is the largest of an allowed ratio at the center, as in
        torchvision and timm.
        """
        smallest, largest = self.scale or (1, 1)
        narrowest, widest = map(math.log, self.ratio)
        # All numbers at once, in 0..1: between the decoding of two images each call of torch takes long.
        for share, shape, x, y in torch.rand(TRIES, 4, dtype=torch.float64).tolist():
            area = width * height * (smallest + share * (largest - smallest))
            ratio = math.exp(narrowest + shape * (widest - narrowest))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, top, left + w, top + h
        w, h = width, height
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h
