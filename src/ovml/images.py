"""Reading pictures of any kind as RGB."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ovml.errors import UserError

ImageLike: TypeAlias = Union[str, "os.PathLike[str]", bytes, Image.Image, "np.ndarray[Any, Any]"]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


def load_image(source: ImageLike, name: str | None = None) -> Image.Image:
    """Return a picture as an upright 8-bit RGB image.

    Greyscale, palette, CMYK and 16-bit pictures are converted, transparency is laid on white, and a camera's
    EXIF rotation is applied. Of an animation the first frame is read.

    Args:
        source: A path, the bytes of an image file, a PIL image, or an array `[H, W]`, `[H, W, 3]` or `[H, W, 4]` of
            uint8, or of floats in 0..1.
        name: What to call the picture in an error, where it is not a path.

    Raises:
        UserError: The file is missing, is no image that Pillow reads, or is broken; or the array has another form.

    Example:
        >>> load_image(np.zeros((4, 6), dtype=np.uint8)).mode
        'RGB'
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source))
    if not isinstance(source, (str, bytes, os.PathLike, Image.Image)):
        raise UserError(f"image: expected a path, bytes, a PIL image or an array, got {type(source).__name__}")
    path = name or ("image" if isinstance(source, (bytes, Image.Image)) else str(source))
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return _to_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; give an image") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image that Pillow can read; convert it to JPEG or PNG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: broken image ({str(error).splitlines()[0]}); replace the file or leave it out"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied for nothing
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion would clip it to 255
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray((values / (257 if values.max(initial=0) > 255 else 1)).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        image = Image.fromarray((values * (255 if values.max(initial=0) <= 1 else 1)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()  # before its file is closed
    return image


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise UserError(f"image: expected an array [H, W], [H, W, 3] or [H, W, 4], got shape {list(array.shape)}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        array = (array * 255).round().clip(0, 255)
    elif array.dtype != np.uint8:
        raise UserError(f"image: expected uint8, or floats in 0..1, got {array.dtype}")
    return Image.fromarray(array.astype(np.uint8))


def find_images(paths: list[str | Path]) -> list[Path]:
    """Expand folders (searched through, in order of name) to the images in them; files stay as they are.

    Raises:
        UserError: A path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
            if not inside:
                raise UserError(f"{path}: no images in this folder; looked for {', '.join(sorted(EXTENSIONS))}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder; check the path")
    return found
