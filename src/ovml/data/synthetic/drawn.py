"""Splits of a synthetic data set, drawn once and cached by the `datasets` library."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import datasets
from PIL import Image

from ovml.data.cache import FEATURES

SPLITS = ("pretrain", "train", "validation", "test")
"""Each split has its own random stream; ``pretrain`` is only for training the data set's own CLIP."""


class DrawnScene(Protocol):
    """The parts of a scene that are stored."""

    @property
    def image(self) -> Image.Image:
        """The image."""

    @property
    def label_ids(self) -> list[int]:
        """Ids of the labels present, ascending."""


def check_split(split: str) -> None:
    """Check the name of a split.

    Raises:
        ValueError: There is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")


def drawn_split(
    draw: Callable[[int], DrawnScene], split: str, size: int, fingerprint: str, cache_dir: str | None
) -> datasets.Dataset:
    """Draw a split, or read it from the cache.

    Args:
        draw: Draws the scene with a given index.
        split: One of `SPLITS`.
        size: Number of scenes.
        fingerprint: Cache key; must name everything that the scenes depend on.
        cache_dir: Folder for the Arrow files; the `datasets` library's own by default.

    Returns:
        Memory-mapped rows: `image`, `positive` (ids of labels), `negative` (always empty: labels not listed are
        absent) and `image_id`.

    Raises:
        ValueError: There is no such split, or `size` is not positive.

    Example:
        >>> from types import SimpleNamespace
        >>> drawn_split(lambda index: SimpleNamespace(), "train", 0, "none", None)
        Traceback (most recent call last):
        ValueError: size must be at least 1; got 0
    """
    check_split(split)
    if size < 1:
        raise ValueError(f"size must be at least 1; got {size}")

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(size):
            scene = draw(index)
            buffer = io.BytesIO()
            scene.image.save(buffer, "PNG", compress_level=1)
            image_id = f"{split}-{index:06d}"
            image = {"bytes": buffer.getvalue(), "path": None}
            yield {"image": image, "positive": scene.label_ids, "negative": [], "image_id": image_id}

    return datasets.Dataset.from_generator(rows, features=FEATURES, cache_dir=cache_dir, fingerprint=fingerprint)
