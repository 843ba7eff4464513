"""Converts rows of a data set to the columns image, positive, negative, image_id, without decoding images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ovml.data.cache import FEATURES, LABEL_FEATURES, Table, cached_table
from ovml.data.labels import ColumnPath, LabelReader
from ovml.data.paths import PathCheck
from ovml.data.rows import undecoded
from ovml.utils.errors import UserError
from ovml.utils.progress import track

CHUNK = 1000
"""Number of rows whose labels are read at once."""
LEFT_OUT = "annotations of labels outside the vocabulary left out"
"""Key of their number in `Table.counts`."""


@dataclass(frozen=True)
class Columns:
    """Columns of a data set that a row is made from.

    Attributes:
        image: Images.
        labels: Labels present.
        negative: Labels verified absent.
        image_id: Names of the images.
    """

    image: str
    labels: ColumnPath
    negative: ColumnPath | None = None
    image_id: ColumnPath | None = None

    @property
    def others(self) -> list[str]:
        """Names of the columns beside the image's."""
        paths = (self.labels, self.negative, self.image_id)
        return list(dict.fromkeys(path.column for path in paths if path is not None))


class RowMaker:
    """Makes rows with the columns image, positive, negative and image_id.

    Args:
        columns: Columns of the data set.
        where: Data set and split, for errors.
        reader: Turns labels into columns of the vocabulary.
        negative_reader: Likewise, labels verified absent.
    """

    def __init__(self, columns: Columns, where: str, reader: LabelReader, negative_reader: LabelReader) -> None:
        self.columns, self.where = columns, where
        self.reader, self.negative_reader = reader, negative_reader

    @property
    def skipped(self) -> int:
        """Number of labels skipped so far."""
        return self.reader.skipped + self.negative_reader.skipped

    def labels(self, row: Mapping[str, Any], image_id: str) -> dict[str, Any]:
        """Positive and negative label ids, and the image's name: the row's own or, without one, `image_id`.

        Raises:
            UserError: A label cannot be read; the message names the row.
        """
        columns, where = self.columns, f"{self.where}, row {image_id}"
        own = columns.image_id.value(row, where) if columns.image_id else None
        positive = self.reader.read(columns.labels.value(row, where), where)
        negative = self.negative_reader.read(columns.negative.value(row, where), where) if columns.negative else []
        return {"positive": positive, "negative": negative, "image_id": image_id if own is None else str(own)}

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of a stream. Without a name of its own it takes the image's file name or a digest of its bytes."""
        image = _undecoded(row[self.columns.image])
        name = image["path"] or hashlib.blake2b(image["bytes"] or b"", digest_size=8).hexdigest()
        return {"image": image, **self.labels(row, name)}


def stored_rows(
    rows: datasets.Dataset, maker: RowMaker, cache_dir: str | Path | None, name: str, settings: Mapping[str, Any]
) -> Table:
    """Rows with their labels beside the images; the labels are read once and cached.

    Args:
        rows: Of one split.
        maker: Reads the labels.
        cache_dir: See `ovml.data.cache.cache_root`.
        name: First part of the cache folder's name.
        settings: Everything that the labels depend on.

    Returns:
        The rows, and in `counts` how many annotations were left out, if any, as `LEFT_OUT`.

    Raises:
        UserError: A label cannot be read, or the cache cannot be written.
    """

    def make(counts: dict[str, int]) -> Iterator[pa.RecordBatch]:
        others = rows.select_columns(maker.columns.others)
        for start in track(range(0, len(rows), CHUNK), "reading labels"):
            chunk = others.__getitems__(range(start, min(start + CHUNK, len(rows))))
            made = [maker.labels(row, str(number)) for number, row in enumerate(chunk, start)]
            yield pa.RecordBatch.from_pylist(made, schema=LABEL_FEATURES.arrow_schema)
        if maker.skipped:
            counts[LEFT_OUT] = maker.skipped

    table = cached_table(cache_dir, name, [], settings, make, LABEL_FEATURES)
    return replace(table, rows=beside_images(rows, maker.columns.image, table.rows))


def beside_images(rows: datasets.Dataset, column: str, labels: datasets.Dataset) -> datasets.Dataset:
    """The images of `rows` as column `image`, with the columns of `labels` beside them; no image is copied."""
    images = rows.select_columns([column])
    if column != "image":
        images = images.rename_column(column, "image")
    if not isinstance(images.features["image"], datasets.Image):
        images = images.cast_column("image", datasets.Image())
    return datasets.concatenate_datasets([images, labels], axis=1)


def streamed_rows(
    rows: datasets.IterableDataset,
    image: str,
    others: Sequence[str],
    make: Callable[[Mapping[str, Any]], dict[str, Any]],
    path_check: PathCheck,
    where: str,
) -> datasets.IterableDataset:
    """Rows of a stream, each made when it is read.

    Args:
        rows: Of one split.
        image: Column of the images.
        others: Columns that `make` needs beside it.
        make: Turns a row with an undecoded image into one with the columns of `FEATURES`.
        path_check: Checks the images that are paths.
        where: Data set and split, for errors.
    """

    def checked(row: Mapping[str, Any]) -> dict[str, Any]:
        made = make(row)
        path_check.check_row(made["image"], where)
        return made

    names = list(dict.fromkeys([image, *others]))
    features = datasets.Features({**FEATURES, "image": datasets.Image(decode=False)})
    return undecoded(rows.select_columns(names), image).map(checked, remove_columns=names, features=features)


def check_image_column(column: str, features: Mapping[str, Any], where: str) -> str:
    """Return the name of a column of images, of their paths or bytes, or of structs of both, as pandas writes them.

    Raises:
        UserError: There is no such column, or it holds something else.
    """
    if column not in features:
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        hint = f"take {images[0]!r} (image_column={images[0]})" if images else "none of them holds images"
        columns = ", ".join(map(repr, features))
        raise UserError(f"{where}: there is no image column {column!r}; the columns are {columns}; {hint}")
    feature = features[column]
    kinds = ("string", "large_string", "binary", "large_binary")
    is_known = feature is None or isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in kinds
    if not is_known and not (isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}):
        raise UserError(f"{where}: column {column!r} holds {feature}, not images; give another (image_column=NAME)")
    return column


def _undecoded(image: Any) -> dict[str, Any]:
    if isinstance(image, Mapping):
        return {"bytes": image.get("bytes"), "path": image.get("path")}
    return {"bytes": None, "path": image} if isinstance(image, str) else {"bytes": image, "path": None}
