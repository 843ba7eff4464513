"""Data sets from plain dicts, one per row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ovml.data.cache import FEATURES, Table, cached_table, record_batch
from ovml.data.labels import LabelReader
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

PlainRow = Mapping[str, Any]
"""`image`: a path, an image or its bytes. `positive`: names or ids of the labels present. If wanted `negative`: those
verified absent; and `image_id`: a name (default: the path, else the row's number)."""


def plain_dataset(rows: Iterable[PlainRow], vocabulary: LabelVocabulary, where: str) -> datasets.Dataset:
    """Rows as a data set in memory.

    Args:
        rows: See `PlainRow`.
        vocabulary: The labels.
        where: Data set and split, for errors.

    Raises:
        UserError: A row lacks a column or has another one, or a label is not in the vocabulary.

    Example:
        >>> rows = [{"image": "a.png", "positive": ["sea"]}, {"image": "b.png", "positive": [], "negative": ["sea"]}]
        >>> made = plain_dataset(rows, LabelVocabulary(seen=("sea",)), "holiday")
        >>> made["image_id"][:], made["positive"][:], made["negative"][:]
        (['a.png', 'b.png'], [[0], []], [[], [0]])
    """
    return datasets.Dataset.from_list(list(_checked(rows, vocabulary, where)), features=FEATURES)


def plain_table(
    rows: Iterable[PlainRow], vocabulary: LabelVocabulary, where: str, root: Path, cache_dir: str | Path | None
) -> Table:
    """Rows whose images are files, as a table in the cache; it is written again when the rows change.

    Args:
        rows: See `PlainRow`; paths of images start from `root`.
        vocabulary: The labels.
        where: Data set and split, for errors.
        root: Folder of the images.
        cache_dir: See `ovml.data.cache.cache_root`.

    Raises:
        UserError: As for `plain_dataset`; or an image is no path, or the cache cannot be written.
    """
    made = []
    for row in _checked(rows, vocabulary, where):
        if not isinstance(row["image"], str):
            raise UserError(f"{where}: image {row['image_id']} is no path; images of a folder are given by their paths")
        made.append({**row, "image": str(root.absolute() / row["image"])})
    digest = hashlib.sha256(json.dumps(made).encode()).hexdigest()

    def make(counts: dict[str, int]) -> Iterator[pa.RecordBatch]:
        yield record_batch(*([row[name] for row in made] for name in FEATURES))

    return cached_table(cache_dir, "rows", [], {"rows": digest}, make)


def _checked(rows: Iterable[PlainRow], vocabulary: LabelVocabulary, where: str) -> Iterator[dict[str, Any]]:
    """Whole rows with ids of labels."""
    reader = LabelReader(vocabulary, unknown="label {} is not in the vocabulary; add it there or correct the row")
    for number, row in enumerate(rows):
        if not {"image", "positive"} <= set(row) <= set(FEATURES):
            raise UserError(
                f"{where}, index {number}: has {', '.join(map(repr, row))}; a row has 'image', 'positive' and, "
                "if wanted, 'negative' and 'image_id'"
            )
        image = str(row["image"]) if isinstance(row["image"], Path) else row["image"]
        name = row.get("image_id", image if isinstance(image, str) else number)
        labels = {kind: reader.read(row.get(kind), f"{where}, index {number}") for kind in ("positive", "negative")}
        yield {"image": image, **labels, "image_id": str(name)}
