"""The images that the page shows: uploaded ones, and those of a folder."""

from __future__ import annotations

import base64
import io
import os
import re
import secrets
from collections import OrderedDict
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from threading import RLock

from PIL import Image

from ovml.utils.console import notice
from ovml.utils.errors import UserError
from ovml.utils.find_images import find_images
from ovml.utils.images import load_image

MOST_PIXELS = 50_000_000
"""Pixels of an image: a small file may claim many, which are decoded before anything is known of them."""
MOST_IMAGES = 100_000
"""Images of a folder."""
SMALL = 240
"""Pixels of a thumbnail's long side."""


class Album:
    """The images of a folder, which all visitors see. It is searched once; files are read when they are shown.

    Args:
        folder: Images in its folders are shown too; hidden files and links that leave the folder are not.
        most: Maximum number of images.

    Raises:
        UserError: The folder does not exist, or has no image.
    """

    def __init__(self, folder: Path, most: int = MOST_IMAGES) -> None:
        if not folder.is_dir():
            raise UserError(f"images {folder}: no such folder; check the path")
        self.folder = folder.resolve()
        found = list(islice(find_images([self.folder]), most + 1))
        self._names = [os.path.relpath(path, self.folder) for path in found[:most] if self._inside(Path(path))]
        if not self._names:
            raise UserError(f"images {folder}: all images in it are links that leave the folder; give their folder")
        if left := len(found[:most]) - len(self._names):
            notice(f"{folder}: links to files outside of the folder are not shown; left out {left:,}")
        if len(found) > most:
            notice(f"{folder}: shows the first {most:,} images")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> str:
        """The path of an image.

        Raises:
            UserError: It is gone, or is a link that leaves the folder now.
        """
        path = self.folder / self._names[number]
        if not path.exists() or not self._inside(path):
            raise UserError(f"{path.name}: no longer an image of the folder; choose another")
        return str(path.resolve())

    def name(self, number: int) -> str:
        """The file name of an image."""
        return os.path.basename(self._names[number])

    def _inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.folder)


_reading = RLock()


def open_picture(path: str) -> Image.Image:
    """Read an image, one at a time. The last one is kept, since it is shown, ranked and explained one after another.

    Raises:
        UserError: The file is gone, is no image or broken, or has more than `MOST_PIXELS`.
    """
    changed = stamp(path)
    with _reading:
        return _open(path, changed)


def read_fitted(path: str, side: int) -> Image.Image:
    """Read an image at a long side of `side` pixels; see `open_picture`."""
    with _reading:
        return fitted(open_picture(path), side)


def stamp(path: str) -> int:
    """The time of a file's last change; 0 for an upload, whose folder is named by the file's content.

    Raises:
        UserError: It is gone.
    """
    try:
        changed = os.stat(path).st_mtime_ns  # of an upload, the time of its last use
        return 0 if re.fullmatch(r"[0-9a-f]{64}", Path(path).parent.name) else changed
    except (OSError, ValueError) as error:
        raise UserError(f"{Path(path).name}: no such file any more; upload it again") from error


@lru_cache(maxsize=1)
def _open(path: str, changed: int) -> Image.Image:
    return load_image(path, Path(path).name, MOST_PIXELS)


def fitted(image: Image.Image, side: int) -> Image.Image:
    """An image scaled to a long side of `side` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Large images are reduced first: Pillow's filters take memory with the factor.
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC, reducing_gap=3.0)


def jpeg(image: Image.Image) -> bytes:
    """An image as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def data_uri(image: Image.Image) -> str:
    """An image as the `src` of an `img`."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(image)).decode()}"


class Thumbnails:
    """Thumbnails by names that cannot be guessed and tell no path. They are drawn when they are read.

    Args:
        most: Maximum number of names, and of thumbnails that are kept.

    Example:
        >>> Thumbnails().read("../../etc/passwd") is None
        True
    """

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self._secret = secrets.token_bytes(16)
        self._paths: OrderedDict[str, str] = OrderedDict()
        self._lock = RLock()
        self._draw = lru_cache(maxsize=most)(lambda path, changed: jpeg(read_fitted(path, SMALL)))

    def name(self, path: str) -> str:
        """The name of an image's thumbnail: the same one while the file does not change.

        Raises:
            UserError: The file is gone.
        """
        name = blake2b(os.fsencode(f"{stamp(path)} {path}"), key=self._secret, digest_size=16).hexdigest()
        with self._lock:
            self._paths[name] = path
            self._paths.move_to_end(name)
            if len(self._paths) > self.most:
                self._paths.popitem(last=False)
        return name

    def read(self, name: str) -> bytes | None:
        """The JPEG file of a name; `None` if there is no such name, or the image cannot be read."""
        path = self._paths.get(name)
        try:
            return None if path is None else self._draw(path, stamp(path))
        except UserError:
            return None
