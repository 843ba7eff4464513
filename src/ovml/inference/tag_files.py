"""Rows of tags, one per image, and the files that hold them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ovml.utils.console import utf8
from ovml.utils.errors import UserError
from ovml.utils.images import ImageLike

Row = dict[str, Any]
"""`{"image": str, "labels": [{"label": str, "score": float}, ...], "error": str | None}`, best label first."""

GROUP_LABELS = 2**17
"""Rows and labels in a row group of Parquet; one group at a time is held in memory."""


def tag_row(image: str, result: Sequence[tuple[str, float]] | UserError) -> Row:
    """Build the row of an image from what `Tagger.tag` yields; scores are rounded to six decimals.

    >>> tag_row("a.png", [("cat", 0.5)])
    {'image': 'a.png', 'labels': [{'label': 'cat', 'score': 0.5}], 'error': None}
    """
    if isinstance(result, UserError):
        return {"image": image, "labels": [], "error": utf8(str(result))}
    labels = [{"label": label, "score": round(score, 6)} for label, score in result]
    return {"image": image, "labels": labels, "error": None}


def image_name(image: ImageLike, position: int) -> str:
    """Return the name of an image in its row: its path, or its position if it is not a path.

    >>> image_name("a/b.png", 7), image_name(b"...", 7)
    ('a/b.png', '7')
    """
    return utf8(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else str(position)


def write_csv(rows: Iterable[Row], path: Path, top_k: int) -> None:
    """Write the columns `image, error, label_1, score_1, ..., label_K, score_K`; missing labels are empty cells."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        # Older versions of Python do not quote a carriage return by themselves.
        plain, quoted = (csv.writer(file, lineterminator="\n", quoting=q) for q in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        plain.writerow(["image", "error", *(f"{name}_{i + 1}" for i in range(top_k) for name in ("label", "score"))])
        for row in rows:
            cells = [cell for label in row["labels"] for cell in (label["label"], f"{label['score']:.6f}")]
            cells = [row["image"], row["error"] or "", *cells, *[""] * (2 * top_k - len(cells))]
            (quoted if "\r" in "".join(cells) else plain).writerow(cells)


def write_parquet(rows: Iterable[Row], path: Path) -> None:
    """Write the columns `image`, `labels` (a list of `label` and `score`) and `error`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = pa.struct([("label", pa.string()), ("score", pa.float32())])
    schema = pa.schema([("image", pa.string()), ("labels", pa.list_(label)), ("error", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += 1 + len(row["labels"])
        if size >= GROUP_LABELS:
            yield group
            group, size = [], 0
    if group:
        yield group
