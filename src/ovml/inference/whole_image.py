"""Whole images, at their own size: pixel values, and the positions of their patches."""

from __future__ import annotations

from math import sqrt

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ovml.encoders import ImageEncoder
from ovml.encoders.image_processor import ImageProcessor
from ovml.utils.errors import UserError, check_whole
from ovml.utils.tensors import full_precision


class WholeImage:
    """Makes pixel values of a whole image, uncropped: each side is resized to the next multiple of a patch's.

    Args:
        processor: Its resampling and normalisation are taken.
        patch_size: Side of a patch in pixels.
        most: Largest number of patches; the attention between patches grows with its square. Larger images are made
            smaller, their aspect ratio kept.

    Example:
        >>> WholeImage(ImageProcessor(224), 16)(Image.new("RGB", (500, 375))).shape
        torch.Size([3, 384, 512])
        >>> WholeImage(ImageProcessor(224), 16)(Image.new("RGB", (4000, 3000))).shape
        torch.Size([3, 432, 576])
    """

    def __init__(self, processor: ImageProcessor, patch_size: int, most: int = 1024) -> None:
        check_whole(self, 1, patch_size=patch_size, most=most)
        self.processor = processor
        self.patch_size = patch_size
        self.most = most

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn an RGB image into pixel values `[3, H, W]`, float32."""
        sides = [-(-length // self.patch_size) for length in image.size]
        if sides[0] * sides[1] > self.most:
            scale = sqrt(self.most / (image.width * image.height))
            sides = [min(self.most, max(1, int(length * scale))) for length in image.size]
        size = (sides[0] * self.patch_size, sides[1] * self.patch_size)
        if image.size != size:
            image = image.resize(size, Image.Resampling(self.processor.resample))
        return self.processor.normalize(image)


def embed_patches(encoder: ImageEncoder, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Make the hidden states that enter the first block of a CLIP's tower, of images of any size.

    Position embeddings are interpolated bilinearly, as in TagCLIP's code.

    Args:
        encoder: The tower.
        pixel_values: Normalised images `[B, 3, H, W]`; sides are multiples of a patch's.

    Returns:
        `[B, 1+P, W]`, and the rows and columns of the patches.

    Raises:
        UserError: A side is no multiple.
    """
    side = int(encoder.vision_model.config.patch_size)
    rows, columns = (length // side for length in pixel_values.shape[-2:])
    if (rows * side, columns * side) != tuple(pixel_values.shape[-2:]) or not rows * columns:
        found = " x ".join(str(length) for length in pixel_values.shape[-2:])
        raise UserError(f"images of {found} pixels: sides must be multiples of {side}, a patch's; take WholeImage")
    if pixel_values.shape[-2:] == (encoder.image_size, encoder.image_size):
        return encoder.embed_patches(pixel_values), (rows, columns)
    parts = encoder.vision_model.embeddings
    patches = parts.patch_embedding(pixel_values.to(parts.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
    table = parts.position_embedding.weight
    known = round(sqrt(len(table) - 1))
    places = full_precision(table[1:]).T.unflatten(-1, (known, known))[None]
    places = F.interpolate(places, (rows, columns), mode="bilinear", align_corners=False)[0].flatten(1).T
    class_token = (parts.class_embedding + table[0]).expand(len(patches), 1, -1)
    tokens = torch.cat([class_token, patches + places.to(patches.dtype)], dim=1)
    hidden_states: Tensor = encoder.vision_model.pre_layrnorm(tokens)
    return hidden_states, (rows, columns)
