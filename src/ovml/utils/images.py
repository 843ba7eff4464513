"""Reading images of any kind as RGB."""

from __future__ import annotations

import io
import os
import stat
from functools import cache
from typing import IO, Any, Protocol, TypeAlias, Union

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ovml.utils.errors import UserError, first_line
from ovml.utils.urls import check_allowed, download, is_url


class TensorLike(Protocol):
    """A `torch.Tensor`, without an import of torch."""

    def is_floating_point(self) -> bool:
        """Whether the values are floats."""


ImageLike: TypeAlias = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image.Image, "np.ndarray[Any, Any]", TensorLike]

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "PPM", "TGA")
"""Formats that are read, as Pillow names them; others, such as PostScript, would start programs."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""
MOST_BYTES = 2**30
"""Bytes that are read from an open file, which may have no end."""


def load_image(
    source: ImageLike, name: str | None = None, max_pixels: int | None = None, allow_urls: bool = False
) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    Greyscale, palette, CMYK and 16-bit images are converted, transparent areas become white, the EXIF rotation is
    applied, and of an animation the first frame is read.

    Args:
        source: A path; the bytes of an image file; a file that is open in binary mode, such as `io.BytesIO`, read from
            its position to its end and left open; a PIL image; an array `[H, W]`, `[H, W, 3]` or `[H, W, 4]`; or a
            tensor `[H, W]`, `[1, H, W]`, `[3, H, W]` or `[4, H, W]`. Arrays and tensors hold uint8, or floats in 0..1.
            Integers of 16 bits and floats in 0..1 are scaled; 32-bit integers and other floats have no known scale.
        name: Name of the image in errors. Default: its path.
        max_pixels: Maximum number of pixels of a file, checked before it is decoded. Default: Pillow's limit.
        allow_urls: Download a `source` that starts with `http://` or `https://`; see `ovml.utils.urls`.

    Raises:
        UserError: The file is missing, broken or of another format than `FORMATS`, the array or image has another
            shape, type or scale, or `source` is a URL that is not allowed or cannot be downloaded.

    Example:
        >>> load_image(np.zeros((4, 6), dtype=np.uint8)).mode
        'RGB'
    """
    path = name or _name(source)
    if is_url(source):
        check_allowed(str(source), allow_urls)
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source)
        if isinstance(source, np.ndarray):
            return _to_rgb(_from_array(source))
        if hasattr(source, "is_floating_point"):
            return _to_rgb(_from_tensor(source))
        with Image.open(_file(source), formats=formats()) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise UserError(f"{image.width:,} x {image.height:,} pixels are too many; at most {max_pixels:,}")
            return _to_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image that Pillow can read; convert it to JPEG or PNG") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        if error.errno is None:  # Pillow's own
            raise _broken(path, error) from error
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except Exception as error:  # a malformed image may raise any
        raise _broken(path, error) from error


def is_one_image(images: object) -> bool:
    """Whether something is a single image, not several; of arrays and tensors, the number of axes tells.

    >>> is_one_image("a.png"), is_one_image(["a.png"]), is_one_image(np.zeros((2, 4, 6, 3)))
    (True, False, False)
    """
    single = (str, bytes, os.PathLike, Image.Image)
    return isinstance(images, single) or hasattr(images, "read") or getattr(images, "ndim", 0) in (2, 3)


def _name(source: object) -> str:
    """What errors call an image: its path, the name of an open file, or `image`."""
    if hasattr(source, "read"):
        source = getattr(source, "name", None)
    return str(source) if isinstance(source, (str, os.PathLike)) else "image"


def _file(source: Any) -> Any:
    """What Pillow opens: a path, or a file in memory."""
    if is_url(source):
        return io.BytesIO(download(source))
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if hasattr(source, "read"):
        return io.BytesIO(_rest(source))
    if not isinstance(source, (str, os.PathLike)):
        kinds = "a path, bytes, an open file, a PIL image, an array or a tensor"
        raise UserError(f"expected {kinds}, got {type(source).__name__}")
    if not stat.S_ISREG(mode := os.stat(source).st_mode):  # a pipe would block
        raise UserError("is a folder; give an image" if stat.S_ISDIR(mode) else "not a file; give an image")
    return source


def _rest(file: IO[bytes]) -> bytes:
    """What is left of an open file; a raw one may give less than is asked for."""
    content = bytearray()
    try:
        while chunk := file.read(2**20):
            content += chunk
            if len(content) > MOST_BYTES:
                raise UserError(f"larger than {MOST_BYTES >> 20} MB; give a smaller image")
    except UserError:
        raise
    except Exception as error:  # such as of a file that is closed, or open for writing or as text
        raise UserError(f"cannot be read ({first_line(error)}); open it in binary mode, 'rb'") from error
    return bytes(content)


def _broken(path: str, error: Exception) -> UserError:
    return UserError(f"{path}: broken image ({first_line(error)}); replace the file or leave it out")


def _to_rgb(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))  # Pillow's own conversion clips to 255
    elif image.mode == "I":
        raise UserError("32-bit integers, whose scale is not known; convert it to 8 or 16 bits")
    elif image.mode == "F":
        image = Image.fromarray(_from_floats(np.asarray(image)))
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()  # before its file is closed
    return image


@cache
def formats() -> list[str]:
    """Those of `FORMATS` that the installed Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where the metadata are damaged: they do not decide over the pixels."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata may raise any
        return 1


def _from_floats(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if not (values >= 0).all() or not (values <= 1).all():
        raise UserError("floats outside of 0..1, or NaN; divide by the largest value that a pixel may have")
    return (values * np.float32(255)).round().astype(np.uint8)


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        raise UserError(f"expected an array [H, W], [H, W, 3] or [H, W, 4], got shape {list(array.shape)}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        array = _from_floats(array)
    elif array.dtype != np.uint8:
        raise UserError(f"expected uint8, or floats in 0..1, got {array.dtype}")
    return Image.fromarray(array.astype(np.uint8))


def _from_tensor(tensor: Any) -> Image.Image:
    shape = list(tensor.shape)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3, 4)):
        raise UserError(f"expected a tensor [3, H, W], [1, H, W] or [H, W], got shape {shape}")
    tensor = tensor.detach().cpu()
    array = np.asarray(tensor.float() if tensor.is_floating_point() else tensor)  # NumPy has no bfloat16
    return _from_array(array if array.ndim == 2 else array.transpose(1, 2, 0))
