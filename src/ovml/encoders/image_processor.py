"""How images become pixel values: sizes, resampling and normalization of a checkpoint's image processor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, floor, isfinite
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovml.utils.errors import UserError, check_at_most, check_positive, error_at
from ovml.utils.schema import check_type, short

MOST_RESIZED = 16
"""Pixels of a resized image, as a multiple of the crop's, up to which all of it is resized."""
MOST_SIDE = 2**14
"""Pixels of a side of resized images."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageProcessor:
    """Resizes, crops and normalizes an image as a checkpoint expects it; the defaults are those of OpenAI's CLIP.

    A model owns one; data modules, taggers and exported files use the model's. Images travel as bytes (`pixels`), a
    quarter of the size of floats; the model normalizes them on its device (`normalize_pixels`).

    Attributes:
        size: Height and width of the pixel values.
        mean: Mean per channel, of values in 0..1.
        std: Standard deviation per channel, of values in 0..1.
        squash: Whether the whole image is resized to a square and its aspect ratio lost, as in SigLIP. Otherwise the
            short side is resized and a square cut from the center.
        resample: Pillow's number of the resampling filter: 3 bicubic, 2 bilinear.
        resize: Short side after resizing and before the center crop, in pixels. Default: `size`, as in CLIP. The MKT
            paper resizes to 256 and crops 224.
        round_crop: Whether the first pixel of the center crop is rounded to the nearest, halves to even, as in
            torchvision and so in published code. Otherwise it is rounded down, as in transformers, whose image
            processors belong to checkpoints.

    Example:
        >>> processor, image = ImageProcessor(64), Image.new("RGB", (80, 120))
        >>> processor.pixels(image).shape, processor.pixels(image).dtype
        (torch.Size([3, 64, 64]), torch.uint8)
        >>> bool((processor(image) == processor.normalize_pixels(processor.pixels(image))).all())
        True
    """

    size: int
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    squash: bool = False
    resample: int = 3
    resize: int | None = None
    round_crop: bool = False

    def __post_init__(self) -> None:
        check_positive("image processor", size=self.size, resize=self.resize)
        check_at_most("image processor", MOST_SIDE, size=self.size, resize=self.short_side)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(map(isfinite, values)):
                raise UserError(f"image processor: {name} must be three finite numbers; got {short(values)}")
        if not min(self.std) > 0:
            raise UserError(f"image processor: std must be above 0; got {short(self.std)}")
        if self.resample not in list(Image.Resampling):
            raise UserError(f"image processor: resample must be from 0 to 5, a filter of Pillow; got {self.resample}")

    @classmethod
    def of_config(cls, config: Any) -> ImageProcessor:
        """The default image processor for a model's configuration."""
        size = config.vision_config.image_size
        if config.model_type == "siglip":
            return cls(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), squash=True)
        return cls(size)

    @classmethod
    def of_transformers(cls, processor: Any, tower_size: int, where: str) -> ImageProcessor:
        """The same preparation as an image processor of transformers.

        Args:
            processor: An image processor of CLIP or SigLIP, or another one with their settings.
            tower_size: Height and width that the image tower takes.
            where: What to call the processor in an error.

        Raises:
            UserError: It has a setting that is damaged, or that ovml does not follow, such as images that are not
                square.
        """
        with error_at(where):
            crops = _check_settings(processor)
        resized, side = processor.size, tower_size
        crop = processor.crop_size if crops else resized
        squash = resized.get("shortest_edge") is None
        if not processor.do_resize:
            raise UserError(f"{where}: do_resize is false; ovml resizes images, set it to true")
        if not crops and not squash:
            raise UserError(
                f"{where}: do_center_crop is false and images keep their aspect ratio; ovml needs square ones"
            )
        sizes = [(crop.get("height"), crop.get("width")), (resized.get("height"), resized.get("width"))][: 1 + squash]
        if sizes[0] != (side, side) or sizes[-1][0] != sizes[-1][1]:
            found = " and ".join(f"{height} x {width}" for height, width in sizes)
            raise UserError(f"{where}: images of {found} pixels; the image tower takes {side} x {side}")
        # `(x * rescale - mean) / std` is `(x / 255 - mean / scale) / (std / scale)`.
        scale = 255 * (processor.rescale_factor if processor.do_rescale else 1.0)
        normalization = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        mean, std = (_three(values, scale, where) for values in normalization)
        short_side = int(resized["height"] if squash else resized["shortest_edge"])
        resize = None if short_side == side else short_side
        with error_at(where):
            return cls(side, mean, std, squash, int(processor.resample), resize, _round_crop(processor))

    @property
    def short_side(self) -> int:
        """Short side of an image after resizing, in pixels.

        >>> ImageProcessor(224).short_side, ImageProcessor(224, resize=256).short_side
        (224, 256)
        """
        return self.resize or self.size

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into normalized pixel values `[3, size, size]`, float32."""
        return self.normalize_pixels(self.pixels(image))

    def pixels(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into bytes `[3, size, size]`, resized and cropped but not normalized."""
        return image_bytes(self.crop(image))

    def crop(self, image: Image.Image) -> Image.Image:
        """Resize an RGB image, and cut out what the model sees, `size` by `size` pixels."""
        size, (width, height) = self.size, self.resized(*image.size)
        if width * height > max(image.width * image.height, MOST_RESIZED * size * size):
            # A narrow image would grow with its aspect ratio: only what the crop keeps is resized, to one grey level
            # the same.
            (left, right, x0, x1), (top, bottom, y0, y1) = (
                self._kept(*sides) for sides in zip((width, height), image.size, strict=True)
            )
            x, y = image.width / width, image.height / height
            box = (left * x - x0, top * y - y0, right * x - x0, bottom * y - y0)  # small numbers: Pillow has 32 bits
            width, height = right - left, bottom - top
            image = image.crop((x0, y0, x1, y1)).resize((width, height), Image.Resampling(self.resample), box)
        elif image.size != (width, height):
            image = image.resize((width, height), Image.Resampling(self.resample))
        left, top = self.crop_start(width), self.crop_start(height)
        return image.crop((left, top, left + size, top + size))  # black where the image is smaller

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image after resizing and before the crop.

        >>> ImageProcessor(64).resized(100, 200), ImageProcessor(64, squash=True).resized(100, 200)
        ((64, 128), (64, 64))
        """
        side = self.short_side
        if self.squash:
            return side, side
        # The long side is rounded down, as in transformers and torchvision.
        return (side, side * height // width) if width <= height else (side * width // height, side)

    def crop_start(self, length: int) -> int:
        """First pixel of the center crop in a resized side; negative where the side is shorter than the crop.

        >>> [ImageProcessor(224, round_crop=rounded).crop_start(224 + 3) for rounded in (False, True)]
        [1, 2]
        """
        left_over = length - self.size
        if not self.round_crop:
            return left_over // 2
        return round(left_over / 2) if left_over > 0 else -(-left_over // 2)

    def _kept(self, resized: int, original: int) -> tuple[int, int, int, int]:
        """Begin and end of what the center crop keeps of a resized side, and of what it comes from."""
        begin = max(0, self.crop_start(resized))
        end, scale = min(resized, begin + self.size), original / resized
        margin = 3 * max(1, ceil(scale)) + 1  # what the filters reach over
        return begin, end, max(0, floor(begin * scale) - margin), min(original, ceil(end * scale) + margin)

    def normalize(self, image: Image.Image) -> Tensor:
        """Normalize an RGB image to `[3, H, W]`, float32, contiguous."""
        return self.normalize_pixels(image_bytes(image))

    def normalize_pixels(self, pixels: Tensor) -> Tensor:
        """Normalize bytes `[..., 3, H, W]` to float32, on their device: `(rgb / 255 - mean) / std`.

        It is computed as `rgb * scale + shift`, by the same operations on one image and on a batch.
        """
        scale, shift = _scale_and_shift(tuple(self.mean), tuple(self.std), pixels.device)
        return pixels.float().mul_(scale).add_(shift)


def check_normalized(pixel_values: Tensor) -> None:
    """Raise a `UserError` for bytes, which a tower would take for numbers of up to 255."""
    if pixel_values.dtype == torch.uint8:
        raise UserError("pixel_values: are bytes; normalize them by OpenVocabularyModel.normalized")


def image_bytes(image: Image.Image) -> Tensor:
    """An RGB image as bytes `[3, H, W]`, contiguous.

    >>> image_bytes(Image.new("RGB", (1, 1), (1, 2, 3))).flatten()
    tensor([1, 2, 3], dtype=torch.uint8)
    """
    width, height = image.size
    # Pillow writes each line as its red, green and blue values, which is cheaper to bring into order than pixels are.
    lines = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8).reshape(height, 3, width)
    return torch.from_numpy(lines.transpose(1, 0, 2).copy())


@dataclass(frozen=True)
class Preprocessing:
    """Settings that replace those of a checkpoint's image processor; `None` keeps the checkpoint's.

    Args:
        resize: Short side after resizing and before the center crop, in pixels; at least the crop's size.
        squash: Whether the whole image is resized to a square, its aspect ratio lost, and nothing is cropped.
        resample: Pillow's number of the resampling filter: 3 bicubic, 2 bilinear.
        mean: Mean per channel, of values in 0..1.
        std: Standard deviation per channel, of values in 0..1; above 0.
        round_crop: Whether the first pixel of the center crop is rounded to the nearest, as in torchvision.

    Example:
        >>> Preprocessing(resize=256).of(ImageProcessor(224)).short_side
        256
    """

    resize: int | None = None
    squash: bool | None = None
    resample: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    round_crop: bool | None = None

    def of(self, processor: ImageProcessor) -> ImageProcessor:
        """Return an image processor with these settings.

        Raises:
            UserError: A setting is out of range, or `resize` does not fit the processor.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        processor = replace(processor, **given)
        if self.resize is not None and (processor.squash or self.resize < processor.size):
            why = "resizes whole images and crops nothing" if processor.squash else f"crops {processor.size} pixels"
            raise UserError(f"model.preprocessing.resize {self.resize}: the checkpoint {why}; leave it out")
        return replace(processor, resize=None) if processor.resize == processor.size else processor


def _check_settings(processor: Any) -> bool:
    """Check the types of an image processor's settings that are used; returns whether it crops."""
    flags = ("do_resize", "do_rescale", "do_normalize", "do_center_crop")
    does = {flag: getattr(processor, flag, None) or False for flag in flags}
    check_type(does, dict[str, bool], "settings")
    used: dict[str, Any] = {"size": dict[str, int], "resample": int}
    if does["do_center_crop"]:
        used["crop_size"] = dict[str, int]
    if does["do_rescale"]:
        used["rescale_factor"] = float
    if does["do_normalize"]:
        used["image_mean"] = used["image_std"] = float | list[float]
    for name, kind in used.items():
        value: Any = getattr(processor, name, None)
        check_type(dict(value) if hasattr(value, "shortest_edge") else value, kind, name)
    if does["do_rescale"] and not processor.rescale_factor:
        raise UserError("rescale_factor must not be 0")
    return bool(does["do_center_crop"])


def _round_crop(processor: Any) -> bool:
    """How a processor that ovml wrote begins the crop; others do not say it."""
    value = getattr(processor, "round_crop", False)
    check_type(value, bool, "round_crop")
    return bool(value)


def _three(values: Any, scale: float, where: str) -> tuple[float, ...]:
    """Three numbers, one per channel, of one or three."""
    numbers = [float(value) / scale for value in (values if isinstance(values, (list, tuple)) else [values])]
    numbers = numbers * 3 if len(numbers) == 1 else numbers
    if len(numbers) != 3 or not all(map(isfinite, numbers)):
        raise UserError(f"{where}: image_mean and image_std are one number or three; got {values!r}")
    return tuple(numbers)


@lru_cache
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Factors and summands `[3, 1, 1]`, kept on the device: copying them for each batch would wait for it."""
    with torch.inference_mode(False):
        means, stds = (torch.tensor(values, dtype=torch.float64, device="cpu").view(3, 1, 1) for values in (mean, std))
        return (1 / (255 * stds)).float().to(device), (-means / stds).float().to(device)
