"""What runs on the machines of a Ray cluster: reading images, scoring them, writing rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from ovml.encoders.image_processor import ImageProcessor
from ovml.inference.tag_files import tag_row, write_parquet
from ovml.inference.tagger import Tagger, read_image
from ovml.model import OpenVocabularyModel
from ovml.utils.console import utf8
from ovml.utils.devices import choose_precision
from ovml.utils.errors import UserError
from ovml.utils.files import atomic_write
from ovml.utils.images import ImageLike
from ovml.vocabulary import LabelVocabulary

IMAGES_AT_ONCE = 64
"""Images that a reader hands on at once; 10 MB at 224 pixels."""

Digests = np.ndarray[Any, np.dtype[np.uint64]]


class TaggerOptions(NamedTuple):
    """Model and settings of a `Tagger`, as values that can be sent to other machines.

    Attributes:
        model: Name of the model; every machine must be able to load it.
        load: Loads a model by name, such as `ovml.saving.load_model`.
        labels: Label names or a vocabulary. Default: the model's own.
        prompt: One template or several.
        precision: What the model computes with; see `ovml.saving.load_model`.
        num_workers: Tasks that read images at once, a core each. Default: as many as the models leave cores.
    """

    model: str
    load: Callable[[str], OpenVocabularyModel]
    labels: Sequence[str] | LabelVocabulary | None = None
    top_k: int | None = 5
    threshold: float | Literal["calibrated", "auto"] | None = None
    prompt: str | Sequence[str] | None = None
    batch_size: int = 32
    num_workers: int | None = None
    probabilities: bool = False
    exclusive: Sequence[Sequence[str]] = ()
    floor: Sequence[str] = ()
    precision: str = "float32"

    def tagger(self, device: str) -> Tagger:
        """Load the model to a device and make the tagger."""
        settings = self._asdict()
        load, name, precision = (settings.pop(key) for key in ("load", "model", "precision"))
        model = load(name).to(device)
        return Tagger(model.set_precision(choose_precision(precision, model.device)), **settings)


def read_rows(table: Any, processor: ImageProcessor, root: Path, done: Any = None) -> Iterator[Any]:
    """Read the images of an Arrow table, which takes one core.

    Args:
        table: Rows of the input.
        processor: Resizes and crops. Pixels are handed on as bytes, and normalized where they are scored.
        root: Folder that image paths are relative to.
        done: Digests of the images that have a row already (`name_digests`), or a reference to them in Ray's memory.

    Yields:
        Tables `image` (name), `pixels` (bytes of `[3, size, size]`; null for a broken image) and `error`.
    """
    import pyarrow as pa

    torch.set_num_threads(1)
    if done is not None and not isinstance(done, np.ndarray):
        import ray

        done = ray.get(done)
    images = table_images(table, root)
    schema = pa.schema([("image", pa.string()), ("pixels", pa.binary()), ("error", pa.string())])
    while some := list(islice(images, IMAGES_AT_ONCE)):
        left = np.ones(len(some), bool) if done is None else ~are_among(name_digests([name for name, _ in some]), done)
        rows = []
        for name, image in (pair for pair, is_left in zip(some, left, strict=True) if is_left):
            pixels = read_image(image, processor.crop)
            is_broken = isinstance(pixels, UserError)
            rows.append(
                {
                    "image": name,
                    "pixels": None if is_broken else np.asarray(pixels).transpose(2, 0, 1).tobytes(),
                    "error": utf8(str(pixels)) if is_broken else None,
                }
            )
        if rows:
            yield pa.Table.from_pylist(rows, schema)


class Scorer:
    """A model on one device that ranks labels for images that were read elsewhere.

    Args:
        options: Model, labels and settings.
        device: Torch device.
        threads: Threads of the model: the cores that it reserves.
    """

    def __init__(self, options: TaggerOptions, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.tagger = options.tagger(device)
        self.label_embeds = self.tagger.label_embeds()

    def __call__(self, table: Any) -> Any:
        """Rows of tags of a table that `read_rows` yields."""
        import pyarrow as pa

        tagger, rows = self.tagger, []
        side = tagger.model.image_processor.size
        for start in range(0, len(table), tagger.batch_size):
            some = table.slice(start, tagger.batch_size)
            contents = [np.frombuffer(value.as_buffer(), np.uint8) for value in some["pixels"] if value.is_valid]
            ranked: Iterator[Any] = iter(())
            if contents:
                pixels = torch.from_numpy(np.stack(contents)).view(-1, 3, side, side)
                ranked = iter(tagger.rank(pixels, self.label_embeds))
            for name, error in zip(some["image"].to_pylist(), some["error"].to_pylist(), strict=True):
                rows.append(tag_row(name, next(ranked) if error is None else UserError(error)))
        label = pa.struct([("label", pa.string()), ("score", pa.float64())])
        schema = pa.schema([("image", pa.string()), ("labels", pa.list_(label)), ("error", pa.string())])
        return pa.Table.from_pylist(rows, schema)


def write_rows(table: Any, out: Path) -> Any:
    """Write rows of tags to a Parquet file named after its images; returns the counts `rows` and `errors`."""
    import pyarrow as pa

    rows = table.to_pylist()
    # If Ray repeats a batch because a machine was lost, the file is overwritten.
    digest = hashlib.sha256("\0".join(row["image"] for row in rows).encode()).hexdigest()[:32]
    with atomic_write(out / f"{digest}.parquet") as beside:
        write_parquet(rows, beside)
    return pa.table({"rows": [len(rows)], "errors": [sum(row["error"] is not None for row in rows)]})


def table_images(table: Any, root: Path) -> Iterator[tuple[str, ImageLike]]:
    """Yield name and image of each row of an Arrow table."""
    ids = table["image_id"].to_pylist() if "image_id" in table.column_names else [None] * len(table)
    for name, value in zip(ids, table["image"], strict=True):
        image = value.as_py()
        path = image
        if isinstance(image, dict):
            path = os.fsdecode(image["path"]) if image.get("path") is not None else None
            image = image.get("bytes") or path
        name = str(utf8(path) if name is None else name)
        # b"" for a row without an image: reading it gives the error of the row.
        yield name, root / image if isinstance(image, str) else image or b""


def name_digests(names: Sequence[str]) -> Digests:
    """Digests of 16 bytes, as pairs of numbers `[N, 2]`."""
    joined = b"".join(hashlib.blake2b(name.encode(), digest_size=16).digest() for name in names)
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def sorted_digests(names: Sequence[str]) -> Digests:
    """Digests in an order in which `are_among` finds them."""
    digests = name_digests(names)
    return digests[np.lexsort((digests[:, 1], digests[:, 0]))]


def are_among(digests: Digests, among: Digests) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each digest is among others, which are sorted.

    >>> are_among(name_digests(["a", "b"]), sorted_digests(["c", "b"])).tolist()
    [False, True]
    """
    if not len(among):
        return np.zeros(len(digests), bool)
    place = np.searchsorted(among[:, 0], digests[:, 0]).clip(max=len(among) - 1)
    found: np.ndarray[Any, np.dtype[np.bool_]] = (among[place] == digests).all(axis=1)
    return found
