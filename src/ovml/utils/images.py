"""Finding image files, and reading images of any kind as RGB."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from fnmatch import fnmatchcase
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ovml.utils.errors import UserError, first_line

ImageLike: TypeAlias = Union[str, "os.PathLike[str]", bytes, Image.Image, "np.ndarray[Any, Any]"]

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
)
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


def load_image(source: ImageLike, name: str | None = None, max_pixels: int | None = None) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    Greyscale, palette, CMYK and 16-bit images are converted, transparent areas become white, the EXIF rotation is
    applied, and of an animation the first frame is read.

    Args:
        source: A path, the bytes of an image file, a PIL image, or an array `[H, W]`, `[H, W, 3]` or `[H, W, 4]` of
            uint8, or of floats in 0..1. Integers of 16 bits and floats in 0..1 are scaled; 32-bit integers and other
            floats have no known scale.
        name: Name of the image in errors. Default: its path.
        max_pixels: Maximum number of pixels of a file, checked before it is decoded. Default: Pillow's limit.

    Raises:
        UserError: The file is missing, broken or of another format than `FORMATS`, or the array or image has another
            shape, type or scale.

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
        if not isinstance(source, bytes) and not stat.S_ISREG(mode := os.stat(source).st_mode):  # a pipe would block
            raise UserError("is a folder; give an image" if stat.S_ISDIR(mode) else "not a file; give an image")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats()) as image:
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
        raise UserError(f"image: expected an array [H, W], [H, W, 3] or [H, W, 4], got shape {list(array.shape)}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        try:
            array = _from_floats(array)
        except UserError as error:
            raise UserError(f"image: {error}") from error
    elif array.dtype != np.uint8:
        raise UserError(f"image: expected uint8, or floats in 0..1, got {array.dtype}")
    return Image.fromarray(array.astype(np.uint8))


def find_images(paths: Iterable[str | Path], skipped: Counter[str] | None = None) -> Iterator[Path]:
    """Yield the image files in folders and of patterns; files are yielded as they are.

    Folders are searched in the order of their names, one at a time as they are needed. Hidden files and folders are
    skipped, and links to folders are not followed. What cannot be listed or read, or has a name that is too long, is
    yielded itself, so that reading it reports the error.

    Args:
        paths: Files, folders, or patterns such as `photos/**/*.jpg`, in which `**` matches any number of folders.
        skipped: Counts the files in folders that are no images, by suffix, what is hidden, as `hidden`, and pipes,
            links to folders and the like, as `no file`.

    Raises:
        UserError: On the call: a path does not exist, or a folder or pattern has no image.
    """
    found = []
    for path in map(Path, paths):
        mode = _mode(path)
        if stat.S_ISDIR(mode or 0):
            inside, nothing = (
                _search(path, skipped=skipped),
                f"no images in this folder; looked for {', '.join(sorted(EXTENSIONS))}",
            )
        elif mode:
            inside, nothing = iter([path]), ""
        elif _is_pattern(str(path)):
            inside, nothing = _match(path), "no file fits this pattern; check it"
        elif mode is not None:
            inside, nothing = iter([path]), ""
        else:
            raise UserError(f"{path}: no such file or folder; check the path")
        first = next(inside, None)
        if first is None:
            raise UserError(f"{path}: {nothing}")
        found.append(chain([first], inside))
    return chain.from_iterable(found)


def images_in(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder, if there are any; see `find_images`."""
    return _search(folder)


def _mode(path: Path) -> int | None:
    """The mode of a file; `None` if it does not exist, 0 if it cannot be looked at."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError:
        return 0


def _match(pattern: Path) -> Iterator[Path]:
    """Yield the files that match a pattern, and the images in folders that match it."""
    fixed = next(i for i, part in enumerate(pattern.parts) if _is_pattern(part))
    folder, parts = Path(*pattern.parts[:fixed]), pattern.parts[fixed:]
    parts = tuple(part for i, part in enumerate(parts) if part != "**" or parts[i - 1 : i] != ("**",))
    return _search(folder, parts, {0}, inside=False) if folder.is_dir() else iter(())


def _is_pattern(part: str) -> bool:
    return any(character in part for character in "*?[")


def _search(
    folder: Path,
    pattern: Sequence[str] = (),
    at: Set[int] = frozenset(),
    inside: bool = True,
    skipped: Counter[str] | None = None,
) -> Iterator[Path]:
    """Search a folder.

    Args:
        folder: The folder.
        pattern: Parts of the pattern that paths must match.
        at: Indices of the parts that may match next.
        inside: Whether to yield all images in the folder, whether they match or not.
        skipped: See `find_images`; a pattern says itself what it leaves out.
    """
    skipped = Counter() if skipped is None else skipped
    at = at | {i + 1 for i in at if pattern[i : i + 1] == ("**",)}
    for path, is_folder in _entries(folder):
        after = {i + (pattern[i] != "**") for i in at if i < len(pattern) and _fits(path.name, pattern[i])}
        fits = len(pattern) in after or (len(pattern) - 1 in after and pattern[-1] == "**")
        hidden = path.name.startswith(".") and path != folder
        if is_folder:
            if after or (inside and not hidden):
                yield from _search(path, pattern, after, (inside and not hidden) or fits, skipped)
            elif inside:
                skipped["hidden"] += 1
        elif is_folder is False and (
            fits or path == folder or (inside and not hidden and path.suffix.lower() in EXTENSIONS)
        ):
            yield path
        elif inside:
            kind = "no file" if is_folder is None else path.suffix.lower() or "no suffix"
            skipped["hidden" if hidden else kind] += 1


def _fits(name: str, part: str) -> bool:
    # As in a shell, hidden files match only patterns that start with a dot.
    return fnmatchcase(name, part) and (part[0] == "." or name[0] != ".")


def _entries(folder: Path) -> Iterator[tuple[Path, bool | None]]:
    """What is in a folder, by name, with its `_kind`; the folder itself as a file if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(((entry.name, _kind(entry)) for entry in entries), key=lambda entry: entry[0])
    except OSError:
        yield folder, False
        return
    for name, is_folder in found:
        yield folder / name, is_folder


def _kind(entry: os.DirEntry[str]) -> bool | None:
    """Whether an entry is a folder; `None` for devices and the like. An entry that cannot be looked at is a file."""
    try:
        return True if entry.is_dir(follow_symlinks=False) else False if entry.is_file() else None
    except OSError:
        return False
