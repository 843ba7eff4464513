"""RandAugment on Pillow pictures: random operations, each at a random strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from PIL import Image, ImageEnhance, ImageOps

from ovml.utils.errors import UserError

Fill = tuple[int, int, int]
Operation = Callable[[Image.Image, float, Fill], Image.Image]
"""From a picture, a strength in -1..1 and the colour of what lies outside the picture to a picture of the same size.
Operations that know no direction take the strength's absolute value."""

GREY: Fill = (128, 128, 128)
MAX_MAGNITUDE = 10


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def _solarize_add(image: Image.Image, added: int) -> Image.Image:
    return image.point([value + added if value < 128 else value for value in range(256)] * 3)


def _factor(level: float) -> float:
    """Factor of an enhancement, where 1 changes nothing."""
    return max(0.1, 1 + 0.9 * level)


def _bits(level: float) -> int:
    """Bits kept per channel; timm's 0 at the greatest magnitude is a black picture, which newer Pillow refuses."""
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
    """Some operations one after the other, drawn for each picture with replacement; random numbers are torch's.

    The defaults are the MKT paper's recipe, timm's `rand-m9-mstd0.5-inc1`. An operation's magnitude is drawn from a
    normal distribution and clipped to 0..10, and its direction is as likely to be one as the other. At magnitude 0
    the geometric operations, the enhancements, Solarize and SolarizeAdd change nothing; Posterize keeps 4 bits, and
    AutoContrast, Equalize and Invert have no magnitude.

    To have other operations, subclass and set `operations`.

    Args:
        num_ops: Operations drawn per picture.
        magnitude: Mean magnitude, 0 to 10.
        std: Standard deviation of the magnitude.
        prob: Chance that an operation drawn is carried out. timm's is 0.5, that of Cubuk et al. (2020) is 1.

    Raises:
        UserError: An argument is out of its range.

    Example:
        >>> RandAugment()(Image.new("RGB", (80, 60))).size
        (80, 60)
    """

    operations: ClassVar[Mapping[str, Operation]] = OPERATIONS
    """What is drawn from, each as likely as the others."""

    def __init__(self, num_ops: int = 2, magnitude: float = 9.0, std: float = 0.5, prob: float = 0.5) -> None:
        if num_ops < 1:
            raise UserError(f"rand_augment.num_ops must be at least 1; got {num_ops}")
        if not 0 <= magnitude <= MAX_MAGNITUDE:
            raise UserError(f"rand_augment.magnitude must lie in 0..{MAX_MAGNITUDE}; got {magnitude}")
        if std < 0:
            raise UserError(f"rand_augment.std must not be negative; got {std}")
        if not 0 <= prob <= 1:
            raise UserError(f"rand_augment.prob must lie in 0..1; got {prob}")
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.std = std
        self.prob = prob

    def __call__(self, image: Image.Image, fill: Fill = GREY) -> Image.Image:
        """Change an RGB picture.

        Args:
            image: The picture.
            fill: Colour of what a geometric operation brings in from outside the picture.
        """
        for name, level in self.draw():
            image = self.operations[name](image, level, fill)
        return image

    def draw(self) -> list[tuple[str, float]]:
        """Names and strengths (-1..1) of the operations for one picture, without those that chance leaves out."""
        names = list(self.operations)
        chosen = torch.randint(len(names), (self.num_ops,)).tolist()
        kept = (torch.rand(self.num_ops) < self.prob).tolist()
        # In double precision, or else 0.9 is a little less, and what is cut to whole numbers falls by one.
        spread = self.std * torch.randn(self.num_ops, dtype=torch.float64)
        magnitudes = (self.magnitude + spread).clamp(0, MAX_MAGNITUDE)
        signs = 2 * torch.randint(2, (self.num_ops,)) - 1
        levels = (signs * magnitudes / MAX_MAGNITUDE).tolist()
        return [(names[i], level) for i, keep, level in zip(chosen, kept, levels, strict=True) if keep]
