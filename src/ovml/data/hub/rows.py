"""Rows of any data set as ovml's: image, positive, negative, image_id; no picture is decoded or copied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ovml.data.cache import FEATURES, cached_folder
from ovml.data.hub.labels import ColumnPath, LabelReader
from ovml.utils.errors import UserError
from ovml.utils.progress import track

CHUNK = 1000
"""Rows whose labels are read at once."""


@dataclass(frozen=True)
class Columns:
    """Where a data set keeps what a row needs.

    Attributes:
        image: The picture.
        labels: Labels present.
        negative: Labels verified absent.
        image_id: Name of the picture.
    """

    image: str
    labels: ColumnPath
    negative: ColumnPath | None = None
    image_id: ColumnPath | None = None

    @property
    def marks(self) -> list[str]:
        """Names of the columns beside the picture's."""
        paths = (self.labels, self.negative, self.image_id)
        return list(dict.fromkeys(path.column for path in paths if path is not None))


class RowMaker:
    """Makes ovml's rows.

    Args:
        columns: Where the data set keeps things.
        reader: Turns labels into columns of the vocabulary.
        where: Data set and split, for errors.
    """

    def __init__(self, columns: Columns, reader: LabelReader, where: str) -> None:
        self.columns, self.reader, self.where = columns, reader, where

    def marks(self, row: Mapping[str, Any], image_id: str) -> dict[str, Any]:
        """Positive and negative label ids, and the name: the row's own, where it has one, else the given one.

        Raises:
            UserError: A label cannot be read; the message names the row.
        """
        columns, where = self.columns, f"{self.where}, row {image_id}"
        own = columns.image_id.value(row, where) if columns.image_id else None
        positive = self.reader.read(columns.labels.value(row, where), where)
        negative = self.reader.read(columns.negative.value(row, where), where) if columns.negative else []
        return {"positive": positive, "negative": negative, "image_id": image_id if own is None else str(own)}

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of a stream. Its name is the picture's file name, or comes from its bytes: it has no number."""
        image = _undecoded(row[self.columns.image])
        return {"image": image, **self.marks(row, image["path"] or _digest(image["bytes"]))}


def stored_rows(
    rows: datasets.Dataset, maker: RowMaker, cache_dir: str | Path | None, settings: Mapping[str, Any]
) -> tuple[datasets.Dataset, int]:
    """Rows beside whose pictures the labels stand, which are read once and kept.

    Args:
        rows: Of one split.
        maker: Reads the labels.
        cache_dir: See `ovml.data.cache.cache_root`.
        settings: All that the labels depend on.

    Returns:
        The rows, and how many labels were left out because the vocabulary has them not.

    Raises:
        UserError: A label cannot be read, or the cache cannot be written.
    """
    schema = datasets.Features({name: FEATURES[name] for name in FEATURES if name != "image"}).arrow_schema
    with cached_folder(cache_dir, "hub", [], settings) as (folder, aside):
        if aside is not None:
            marks = rows.select_columns(maker.columns.marks)
            with pa.OSFile(str(aside / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for start in track(range(0, len(rows), CHUNK), "reading labels"):
                    chunk = marks[start : start + CHUNK]
                    made = [
                        maker.marks(dict(zip(chunk, values, strict=True)), str(start + offset))
                        for offset, values in enumerate(zip(*chunk.values(), strict=True))
                    ]
                    writer.write_batch(pa.RecordBatch.from_pylist(made, schema=schema))
            (aside / "counts.json").write_text(json.dumps({"unknown_labels": maker.reader.skipped}))
    pictures = rows.select_columns([maker.columns.image])
    if maker.columns.image != "image":
        pictures = pictures.rename_column(maker.columns.image, "image")
    if not isinstance(pictures.features["image"], datasets.Image):
        pictures = pictures.cast_column("image", datasets.Image())
    marks = datasets.Dataset.from_file(str(folder / "rows.arrow"))
    counts = json.loads((folder / "counts.json").read_text())
    return datasets.concatenate_datasets([pictures, marks], axis=1), counts["unknown_labels"]


def streamed_rows(rows: datasets.IterableDataset, maker: RowMaker) -> datasets.IterableDataset:
    """Rows of a stream, each made when it is read."""
    names = list(dict.fromkeys([maker.columns.image, *maker.columns.marks]))
    rows = rows.select_columns(names)
    if rows.features is not None and isinstance(rows.features[maker.columns.image], datasets.Image):
        rows = rows.cast_column(maker.columns.image, datasets.Image(decode=False))
    features = datasets.Features({**FEATURES, "image": datasets.Image(decode=False)})
    return rows.map(maker, remove_columns=names, features=features)


def check_image_column(column: str, features: Mapping[str, Any], where: str) -> str:
    """Return the name of a column of pictures, or of their paths or bytes.

    Raises:
        UserError: There is no such column, or it holds something else.
    """
    if column not in features:
        pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        hint = f"take {pictures[0]!r} (--data.image_column {pictures[0]})" if pictures else "none of them holds images"
        columns = ", ".join(map(repr, features))
        raise UserError(f"{where}: there is no image column {column!r}; the columns are {columns}; {hint}")
    feature = features[column]
    is_known = feature is None or isinstance(feature, datasets.Image)
    if not is_known and getattr(feature, "dtype", None) not in ("string", "large_string", "binary", "large_binary"):
        raise UserError(f"{where}: column {column!r} holds {feature}, not images (--data.image_column)")
    return column


def _undecoded(image: Any) -> dict[str, Any]:
    if isinstance(image, Mapping):
        return {"bytes": image.get("bytes"), "path": image.get("path")}
    return {"bytes": None, "path": image} if isinstance(image, str) else {"bytes": image, "path": None}


def _digest(content: bytes | None) -> str:
    return hashlib.blake2b(content or b"", digest_size=8).hexdigest()
