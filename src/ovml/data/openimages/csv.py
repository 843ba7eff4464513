"""Reads the large CSV files of Open Images as streams: verified labels and lists of images."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pacsv

from ovml.data.openimages.annotations import AnnotationCollector, Annotations, Array
from ovml.utils.errors import UserError, first_line
from ovml.utils.progress import track

SOURCE = "https://storage.googleapis.com/openimages/web/download_v7.html"
"""Download page of the data set."""
AGAIN = f"fix it or download it again from {SOURCE}"
COLUMNS = ("ImageID", "LabelName", "Confidence")
BLOCK_BYTES = 4 << 20
"""Bytes read at once; larger blocks are no faster, and the reader holds dozens of them."""


def read_annotations(
    path: Path, label_ids: Sequence[str] = (), listed: pa.Array | None = None
) -> tuple[pa.Array, Annotations]:
    """Read verified labels as a stream.

    Args:
        path: CSV file with the columns ImageID, LabelName and Confidence (0 or 1).
        label_ids: Machine ids that come first in `Annotations.label_ids`; other ids of the file follow.
        listed: Image ids that come first, even if the file has no annotation of them.

    Returns:
        Ids of the images, in the order of the list and the file, and the annotations.

    Raises:
        UserError: A column is missing or unknown, a line is malformed, or a Confidence is neither 0 nor 1; the message
            names the line.
    """
    collector = AnnotationCollector(label_ids)
    images = [] if listed is None else [listed]  # of each block; an id may occur in several blocks
    offset = sum(map(len, images))
    for block in _blocks(path, COLUMNS, others=("Source",)):
        image, label, confidence = (column.dictionary_encode() for column in block.columns)
        present = [_presence(value) for value in confidence.dictionary.to_pylist()]
        if None in present or any(pc.any(pc.equal(ids.dictionary, "")).as_py() for ids in (image, label)):
            _explain(path, "invalid value")
        collector.add(_numbers(image) + offset, label, np.array(present, dtype=np.int64)[_numbers(confidence)])
        images.append(image.dictionary)
        offset += len(image.dictionary)
    encoded = pa.chunked_array(images, pa.string()).dictionary_encode()
    image_ids = encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], pa.string())
    number_of = np.concatenate([np.zeros(0, np.int64), *map(_numbers, encoded.chunks)])
    del images, encoded
    pa.default_memory_pool().release_unused()  # about 1 GB that Arrow would keep
    return image_ids, collector.annotations(len(image_ids), number_of)


def read_image_list(path: Path, split: str) -> pa.Array:
    """Ids of a split's images, each once, in the order of the file.

    Raises:
        UserError: The file has no column ImageID, a malformed line, or no image of the split.
    """
    has_subset = "Subset" in _header(path)
    columns = ("ImageID", "Subset") if has_subset else ("ImageID",)
    pieces = []
    # Titles of images may hold line breaks.
    for block in _blocks(path, columns, newlines_in_values=True):
        ids = block.column(0)
        pieces.append(ids.filter(pc.equal(block.column(1), split)) if has_subset else ids)
    ids = pa.chunked_array(pieces, pa.string()).unique()
    if len(ids) == 0:
        raise UserError(f"{path}: lists no image of the {split} split; {AGAIN}")
    return ids


def _blocks(
    path: Path, columns: Sequence[str], others: Sequence[str] | None = None, newlines_in_values: bool = False
) -> Iterator[pa.RecordBatch]:
    """Stream some columns of a file; if `others` is given, the file must have no columns beside both."""
    header = _header(path)
    if missing := [name for name in columns if name not in header]:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; its first line is {','.join(header)!r}, and it should name "
            f"{', '.join(columns)}; {AGAIN}"
        )
    if unknown := [name for name in header if others is not None and name not in (*columns, *others)]:
        raise UserError(f"{path}: unknown column {', '.join(map(repr, unknown))} beside {', '.join(columns)}; {AGAIN}")
    convert = pacsv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns))
    parse = pacsv.ParseOptions(newlines_in_values=newlines_in_values)
    total = math.ceil(path.stat().st_size / BLOCK_BYTES)
    try:
        reader = pacsv.open_csv(path, pacsv.ReadOptions(block_size=BLOCK_BYTES), parse, convert)
        yield from track(reader, f"reading {path.name}", total=total)
    except pa.ArrowInvalid as error:
        reason = first_line(error)
        if newlines_in_values:  # then a line is no row
            raise UserError(f"{path}: {reason}; {AGAIN}") from error
        _explain(path, reason)


def _header(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            header = next(csv.reader([file.readline().decode("utf-8-sig")]), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); {AGAIN}") from error
    if not header:
        raise UserError(f"{path}: is empty; {AGAIN}")
    return header


def _explain(path: Path, reason: str) -> NoReturn:
    """Find and name the malformed line of an annotation file, which the fast reader does not report."""
    header = _header(path)
    with path.open("rb") as file:
        next(file)
        for number, line in enumerate(file, start=2):
            where = f"{path}, line {number}"
            try:
                row = next(csv.reader([line.decode().rstrip("\r\n")], strict=True), [])
            except (UnicodeDecodeError, csv.Error) as error:
                raise UserError(f"{where}: {error}; {AGAIN}") from error
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(f"{where}: {len(row)} fields where {len(header)} are expected; {AGAIN}")
            cells = dict(zip(header, row, strict=True))
            for name in ("ImageID", "LabelName"):
                if not cells[name]:
                    raise UserError(f"{where}: {name} is empty; {AGAIN}")
            if _presence(cells["Confidence"]) is None:
                raise UserError(
                    f"{where}: Confidence is {cells['Confidence']!r}, but human-verified labels have 0 or 1; "
                    "use the file of human labels, not the one of machine-generated labels"
                )
    raise UserError(f"{path}: {reason}; {AGAIN}")


def _presence(confidence: str) -> int | None:
    try:
        value = float(confidence)
    except ValueError:
        return None
    return int(value) if value in (0, 1) else None


def _numbers(encoded: pa.DictionaryArray) -> Array:
    numbers: Array = encoded.indices.to_numpy().astype(np.int64)
    return numbers
