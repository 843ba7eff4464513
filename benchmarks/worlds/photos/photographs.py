"""Photographs with captions: Parquet files or a data set of the Hub, and their pixels as one array on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ovml.data.cache import cached_folder
from ovml.data.hub.load import LoadedSet, load_set
from ovml.utils.errors import UserError
from ovml.utils.images import load_image
from ovml.utils.progress import track

SHARED = "../shared/photos/flickr8k"
"""Folder of the photographs, from the root of the repository."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def load_photographs(path: str = SHARED, cache_dir: str | None = None) -> LoadedSet:
    """Load photographs with captions.

    Args:
        path: Folder of `train.parquet`, `validation.parquet` and `test.parquet`, or a name on the Hub.
        cache_dir: Cache folder. Default: that of `datasets`.

    Raises:
        UserError: They cannot be loaded, or lack a split, images or captions.
    """
    found = load_set(path, cache_dir=cache_dir)
    for split in ("train", "validation", "test"):
        if split not in found.splits:
            raise UserError(f"{path}: has no {split} split, only {', '.join(found.splits)}; take another data set")
        image_column(found.splits[split], path)
        caption_columns(found.splits[split], path)
    return found


def image_column(rows: datasets.Dataset, where: str) -> str:
    """The column of images, which may be plain structs of bytes and path."""
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and {"bytes", "path"} <= set(feature)):
            return str(name)
    raise UserError(f"{where}: has no column of images, only {', '.join(rows.features)}; take another data set")


def caption_columns(rows: datasets.Dataset, where: str) -> list[str]:
    """The columns of captions: `captions`, `caption`, or `caption_0` and so on."""
    found = [name for name in rows.features if name.rstrip("0123456789_") in ("caption", "captions")]
    if not found:
        raise UserError(f"{where}: has no column of captions, only {', '.join(rows.features)}; take another data set")
    return found


def captions_of(rows: datasets.Dataset, where: str) -> list[list[str]]:
    """The captions of each photograph."""
    columns = [rows[name][:] for name in caption_columns(rows, where)]
    together = zip(*columns, strict=True)
    return [[text for cell in cells for text in ([cell] if isinstance(cell, str) else cell)] for cells in together]


def pixels_of(rows: datasets.Dataset, side: int, key: str, cache_dir: str | None = None) -> Pixels:
    """Pixels `[N, side, side, 3]` of photographs, squashed to squares; decoded once, then memory-mapped.

    Args:
        rows: Of one split.
        side: Pixels of a side.
        key: Changes with the rows.
        cache_dir: See `ovml.data.cache.cache_root`.

    Raises:
        UserError: An image cannot be read, or the cache cannot be written.
    """
    column = image_column(rows, key)
    with cached_folder(cache_dir, "photo-pixels", [], {"rows": key, "side": side}) as (folder, aside):
        if aside is not None:
            undecoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
            shape = (len(rows), side, side, 3)
            pixels = np.lib.format.open_memmap(aside / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
            for i, row in enumerate(track(undecoded, "decoding photographs", total=len(rows))):
                image, path = row[column]["bytes"], row[column]["path"]
                image = load_image(image if image is not None else path)
                pixels[i] = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
            pixels.flush()
            del pixels
    mapped: Pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return mapped


def is_there(path: str | Path) -> bool:
    """Whether photographs lie in a folder here rather than on the Hub."""
    return Path(path).expanduser().is_dir()


def some_words(captions: Sequence[Sequence[str]]) -> list[str]:
    """All words of captions, lower-case, in their order."""
    return [word for own in captions for text in own for word in words_of(text)]


def words_of(text: str) -> list[str]:
    """The words of a caption, lower-case, without punctuation.

    >>> words_of("A child's dog , on the BEACH .")
    ['a', 'child', 's', 'dog', 'on', 'the', 'beach']
    """
    return "".join(letter if letter.isalpha() else " " for letter in text.lower()).split()
