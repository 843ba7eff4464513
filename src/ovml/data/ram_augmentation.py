"""Augmentations of training images that take the place of crop and flip, and RAM's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ovml.encoders.image_processor import ImageProcessor

Operation = Callable[[Image.Image], Image.Image]


class Augmentation(ABC):
    """Turns training images into pixel values; to write one, subclass it and draw random numbers from torch.

    Example:
        >>> class Half(Augmentation):
        ...     def __call__(self, image, processor):
        ...         return processor.pixels(image.reduce(2))
        >>> Half()(Image.new("RGB", (80, 120)), ImageProcessor(64)).shape
        torch.Size([3, 64, 64])
    """

    @abstractmethod
    def __call__(self, image: Image.Image, processor: ImageProcessor) -> Tensor:
        """Turn an RGB image into pixel values `[3, size, size]`: always bytes, or always normalized floats.

        Args:
            image: The image, as large as it is on disk.
            processor: Size and normalization, and what evaluation does.
        """


class RAMAugmentation(Augmentation):
    """RAM's chain for training images (Tan et al., CVPR 2025), with the distributions of the published code.

    1. Flip, in half of the images.
    2. In random order, on the image as large as it is: a crop of up to 10 % from each side and back to size, in 20 %;
       contrast times 0.75 to 1.25, in 20 %; Gaussian noise with a standard deviation of up to 3.8 of 255, always, its
       own for each channel in 20 %; brightness times 0.9 to 1.1, always, its own factor for each channel in 20 %; an
       affine map in 20 %: each axis scaled by 0.9 to 1.1 and shifted by up to 10 %, rotated by up to 10 degrees, black
       outside. (The published blur is too small to change a byte.)
    3. Both sides are resized to the tower's size, bicubic; flip, in half; 10 black pixels are added on each side, and
       a square of the tower's size is cut at random.
    4. Normalization; in half of the images a rectangle of 2 to 33.3 % of the area and an aspect ratio of 0.3 to 3.33
       becomes Gaussian noise. Such noise has values that no byte has, so these images are normalized floats.

    Example:
        >>> RAMAugmentation()(Image.new("RGB", (80, 120)), ImageProcessor(64)).shape
        torch.Size([3, 64, 64])
    """

    def __call__(self, image: Image.Image, processor: ImageProcessor) -> Tensor:
        """Turn an RGB image into normalized pixel values `[3, size, size]`, float32."""
        for operation in self.draw():
            image = operation(image)
        size = processor.size
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        if _chance(0.5):
            image = ImageOps.mirror(image)
        left, top = torch.randint(2 * PADDING + 1, (2,)).tolist()
        image = ImageOps.expand(image, PADDING).crop((left, top, left + size, top + size))
        pixels = processor.normalize(image)
        return erase(pixels) if _chance(0.5) else pixels

    def draw(self) -> list[Operation]:
        """Draw the operations on an image as large as it is, in their order."""
        operations: list[Operation] = [
            partial(add_noise, sigma=_uniform(0, 0.015 * 255), per_channel=_chance(0.2)),
            partial(multiply, factors=[_uniform(0.9, 1.1) for _ in range(3)] if _chance(0.2) else [_uniform(0.9, 1.1)]),
        ]
        if _chance(0.2):
            operations.append(partial(crop_sides, shares=[_uniform(0, 0.1) for _ in range(4)]))
        if _chance(0.2):
            operations.append(partial(change_contrast, factor=_uniform(0.75, 1.25)))
        if _chance(0.2):
            scale, shift = (_uniform(0.9, 1.1), _uniform(0.9, 1.1)), (_uniform(-0.1, 0.1), _uniform(-0.1, 0.1))
            operations.append(partial(transform, scale=scale, shift=shift, degrees=_uniform(-10, 10)))
        shuffled = [operations[i] for i in torch.randperm(len(operations)).tolist()]
        return [ImageOps.mirror, *shuffled] if _chance(0.5) else shuffled


PADDING = 10
"""Black pixels on each side before the crop."""


def crop_sides(image: Image.Image, shares: list[float]) -> Image.Image:
    """Cut shares of the width or height from left, top, right and bottom; the rest is resized to the same size."""
    (width, height), (left, top, right, bottom) = image.size, shares
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    x0, y0, x1, y1 = map(round, box)
    return image.resize((width, height), Image.Resampling.BICUBIC, (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))


def change_contrast(image: Image.Image, factor: float) -> Image.Image:
    """Move each value away from 127, or towards it.

    >>> change_contrast(Image.new("RGB", (1, 1), (127, 227, 27)), 0.75).getpixel((0, 0))
    (127, 202, 52)
    """
    return image.point([round(127 + factor * (value - 127)) for value in range(256)] * 3)


def multiply(image: Image.Image, factors: list[float]) -> Image.Image:
    """Multiply all channels by one factor, or each by its own.

    >>> multiply(Image.new("RGB", (1, 1), (100, 100, 250)), [1.1, 0.9, 1.1]).getpixel((0, 0))
    (110, 90, 255)
    """
    own = factors if len(factors) == 3 else factors * 3
    return image.point([min(255, round(factor * value)) for factor in own for value in range(256)])


def add_noise(image: Image.Image, sigma: float, per_channel: bool) -> Image.Image:
    """Add Gaussian noise to each pixel, the same for its channels or another for each."""
    noise = sigma * torch.randn(image.height, image.width, 3 if per_channel else 1)
    noisy = np.asarray(image) + noise.numpy()
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def transform(
    image: Image.Image, scale: tuple[float, float], shift: tuple[float, float], degrees: float
) -> Image.Image:
    """Scale and rotate about the center, then shift by shares of width and height; bilinear, black outside.

    >>> image = Image.new("RGB", (10, 10), "white")
    >>> [transform(image, (1, 1), (0.5, 0), 0).getpixel((x, 5)) for x in (4, 5)]
    [(0, 0, 0), (255, 255, 255)]
    """
    (width, height), angle = image.size, math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # Pillow asks where a pixel of the result comes from.
    a, b, d, e = cos / scale[0], sin / scale[0], -sin / scale[1], cos / scale[1]
    x, y = width / 2 + shift[0] * width, height / 2 + shift[1] * height
    matrix = (a, b, width / 2 - a * x - b * y, d, e, height / 2 - d * x - e * y)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def erase(pixels: Tensor) -> Tensor:
    """Put Gaussian noise into a random rectangle of `[3, H, W]`: 2 to 33.3 % of the area, aspect ratio 0.3 to 3.33."""
    height, width = pixels.shape[1:]
    for _ in range(10):
        area = height * width * _uniform(0.02, 0.333)
        ratio = math.exp(_uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = int(torch.randint(height - h + 1, ())), int(torch.randint(width - w + 1, ()))
            pixels = pixels.clone()
            pixels[:, top : top + h, left : left + w] = torch.randn(len(pixels), h, w)
            return pixels
    return pixels


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), dtype=torch.float64).item()


def _chance(probability: float) -> bool:
    return torch.rand(()).item() < probability
