"""RandAugment on Pillow images: random operations, each at a random strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from PIL import Image, ImageEnhance, ImageOps

from ovml.utils.errors import UserError, check_not_negative, check_share, check_whole

Fill = tuple[int, int, int]
Operation = Callable[[Image.Image, float, Fill], Image.Image]
"""Maps an image, a strength in -1..1 and a fill colour to an image of the same size. Operations without a direction use
the absolute value of the strength."""

GREY: Fill = (128, 128, 128)
MAX_MAGNITUDE = 10


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def _solarize_add(image: Image.Image, added: int) -> Image.Image:
    return image.point([value + added if value < 128 else value for value in range(256)] * 3)


def _factor(level: float) -> float:
    """Enhancement factor of a strength; 1 changes nothing."""
    return max(0.1, 1 + 0.9 * level)


def _bits(level: float) -> int:
    """Bits kept per channel; timm's 0 at the maximum magnitude makes a black image, which newer Pillow refuses."""
    return max(1, 4 - int(4 * abs(level)))


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, level, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, level, fill: ImageOps.equalize(image),
    "Invert": lambda image, level, fill: ImageOps.invert(image),
    "Rotate": lambda image, level, fill: image.rotate(30 * level, Image.Resampling.BICUBIC, fillcolor=fill),
    "Posterize": lambda image, level, fill: ImageOps.posterize(image, _bits(level)),
    "Solarize": lambda image, level, fill: ImageOps.solarize(image, 256 - int(256 * abs(level))),
    "SolarizeAdd": lambda image, level, fill: _solarize_add(image, int(110 * abs(level))),
    "Color": lambda image, level, fill: ImageEnhance.Color(image).enhance(_factor(level)),
    "Contrast": lambda image, level, fill: ImageEnhance.Contrast(image).enhance(_factor(level)),
    "Brightness": lambda image, level, fill: ImageEnhance.Brightness(image).enhance(_factor(level)),
    "Sharpness": lambda image, level, fill: ImageEnhance.Sharpness(image).enhance(_factor(level)),
    "ShearX": lambda image, level, fill: _affine(image, (1, 0.3 * level, 0, 0, 1, 0), fill),
    "ShearY": lambda image, level, fill: _affine(image, (1, 0, 0, 0.3 * level, 1, 0), fill),
    "TranslateXRel": lambda image, level, fill: _affine(image, (1, 0, 0.45 * level * image.width, 0, 1, 0), fill),
    "TranslateYRel": lambda image, level, fill: _affine(image, (1, 0, 0, 0, 1, 0.45 * level * image.height), fill),
}
"""The operations and strengths of timm's `inc1` set, which the MKT paper's code uses; all grow with the magnitude."""


class RandAugment:
    """Applies random operations to an image, drawn with replacement from torch's random numbers.

    The defaults are the MKT paper's recipe, timm's `rand-m9-mstd0.5-inc1`. The magnitude of an operation is drawn from
    a normal distribution and clipped to 0..10; both directions are equally likely. At magnitude 0 the geometric
    operations, the enhancements, Solarize and SolarizeAdd change nothing; Posterize keeps 4 bits, and AutoContrast,
    Equalize and Invert have no magnitude.

    For other operations, subclass and set `operations`.

    Args:
        num_ops: Number of operations drawn per image.
        magnitude: Mean magnitude, 0 to 10.
        std: Standard deviation of the magnitude.
        prob: Probability of applying a drawn operation: 0.5 in timm, 1 in Cubuk et al. (2020).

    Raises:
        UserError: An argument is out of range.

    Example:
        >>> RandAugment()(Image.new("RGB", (80, 60))).size
        (80, 60)
    """

    operations: ClassVar[Mapping[str, Operation]] = OPERATIONS
    """Operations to draw from, with equal probability."""

    def __init__(self, num_ops: int = 2, magnitude: float = 9.0, std: float = 0.5, prob: float = 0.5) -> None:
        check_whole(self, 1, num_ops=num_ops)
        if not 0 <= magnitude <= MAX_MAGNITUDE:
            raise UserError(f"RandAugment: magnitude must be from 0 to {MAX_MAGNITUDE}; got {magnitude}")
        check_not_negative(self, std=std)
        check_share(self, prob=prob)
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.std = std
        self.prob = prob

    def __call__(self, image: Image.Image, fill: Fill = GREY) -> Image.Image:
        """Change an RGB image.

        Args:
            image: The image.
            fill: Colour of the areas that a geometric operation brings in from outside the image.
        """
        for name, level in self.draw():
            image = self.operations[name](image, level, fill)
        return image

    def draw(self) -> list[tuple[str, float]]:
        """Draw names and strengths (-1..1) of the operations for one image."""
        names = list(self.operations)
        chosen = torch.randint(len(names), (self.num_ops,)).tolist()
        kept = (torch.rand(self.num_ops) < self.prob).tolist()
        # In double precision: in single, 0.9 is slightly less and values rounded down to integers fall by one.
        spread = self.std * torch.randn(self.num_ops, dtype=torch.float64)
        magnitudes = (self.magnitude + spread).clamp(0, MAX_MAGNITUDE)
        signs = 2 * torch.randint(2, (self.num_ops,)) - 1
        levels = (signs * magnitudes / MAX_MAGNITUDE).tolist()
        return [(names[i], level) for i, keep, level in zip(chosen, kept, levels, strict=True) if keep]
