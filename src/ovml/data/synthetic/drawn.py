"""Splits of a synthetic data set, drawn once and then read from the cache."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import datasets
import pyarrow as pa
from PIL import Image

from ovml.data.cache import FEATURES, cached_table
from ovml.utils.errors import check_whole
from ovml.utils.progress import track

CHUNK = 100
"""Number of scenes that are drawn at once."""
FORMAT = "PPM"
"""How scenes are stored: uncompressed, because decoding small PNG files would take longer than all that follows."""

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
        cache_dir: See `ovml.data.cache.cache_root`.

    Returns:
        Memory-mapped rows: `image`, `positive` (ids of labels), `negative` (always empty: labels not listed are
        absent) and `image_id`.

    Raises:
        ValueError: There is no such split, or `size` is not positive.
        OSError: The disk is full.

    Example:
        >>> from types import SimpleNamespace
        >>> drawn_split(lambda index: SimpleNamespace(), "train", 0, "none", None)
        Traceback (most recent call last):
        ovml.utils.errors.UserError: train: size must be at least 1; got 0
    """
    check_split(split)
    check_whole(split, 1, size=size)

    def make(counts: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        for start in track(range(0, size, CHUNK), f"drawing {split}"):
            rows = [_row(draw(index), f"{split}-{index:06d}") for index in range(start, min(start + CHUNK, size))]
            yield pa.RecordBatch.from_pylist(rows, schema=FEATURES.arrow_schema)

    return cached_table(cache_dir, "scenes", [], {"scenes": fingerprint, "format": FORMAT}, make).rows


def _row(scene: DrawnScene, image_id: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    scene.image.save(buffer, FORMAT)
    image = {"bytes": buffer.getvalue(), "path": None}
    return {"image": image, "positive": scene.label_ids, "negative": [], "image_id": image_id}
