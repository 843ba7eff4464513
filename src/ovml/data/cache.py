"""Cache of annotations: read once from a data set's files, written as Arrow, opened memory-mapped."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from ovml.utils.errors import UserError
from ovml.utils.files import atomic_write

FORMAT = 2
"""Version of the cached tables, part of every key; increase it when the same files give another table."""

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "positive": datasets.List(datasets.Value("int32")),
        "negative": datasets.List(datasets.Value("int32")),
        "image_id": datasets.Value("string"),
    }
)
"""Columns of every data set: image, ids of the labels present, ids of the labels verified absent, name."""


@dataclass(frozen=True)
class Table:
    """Rows of a data set, and counts from reading its files.

    Attributes:
        rows: Memory-mapped.
        counts: For instance how many rows repeat an annotation. Or other JSON about the rows.
        folder: Cache folder of both.
    """

    rows: datasets.Dataset
    counts: dict[str, Any]
    folder: Path


def cache_root(cache_dir: str | Path | None) -> Path:
    """Folder of all tables: the given one, or `ovml` in the cache of the `datasets` library."""
    return Path(cache_dir).expanduser() if cache_dir else Path(datasets.config.HF_DATASETS_CACHE) / "ovml"


def cached_table(
    cache_dir: str | Path | None,
    name: str,
    inputs: Sequence[Path],
    settings: Mapping[str, Any],
    make: Callable[[dict[str, Any]], Iterable[pa.RecordBatch]],
    features: datasets.Features = FEATURES,
) -> Table:
    """Open a table; make it first if its inputs or settings have changed.

    Args:
        cache_dir: See `cache_root`.
        name: First part of the folder's name.
        inputs: Files that the table depends on, by path, size and modification time.
        settings: Everything else that it depends on; must be JSON.
        make: Yields the rows in batches of `record_batch`; may fill the dict that it gets with counts.
        features: Columns of the batches.

    Raises:
        UserError: The cache folder cannot be written, or what `make` raises. No partial table remains.
    """
    with cached_folder(cache_dir, name, inputs, settings) as (folder, aside):
        if aside is not None:
            counts: dict[str, Any] = {}
            with (
                pa.OSFile(str(aside / "rows.arrow"), "wb") as sink,
                pa.ipc.new_stream(sink, features.arrow_schema) as writer,
            ):
                for batch in make(counts):
                    writer.write_batch(batch)
            (aside / "counts.json").write_text(json.dumps(counts))
    rows = datasets.Dataset.from_file(str(folder / "rows.arrow"))
    return Table(rows, json.loads((folder / "counts.json").read_text()), folder)


@contextmanager
def cached_folder(
    cache_dir: str | Path | None, name: str, inputs: Sequence[Path], settings: Mapping[str, Any]
) -> Iterator[tuple[Path, Path | None]]:
    """Yield a cache folder's path and, if it does not exist yet, a temporary folder to fill, which is renamed to it.

    Raises:
        UserError: The folder cannot be written.
    """
    stamps = [(str(p.resolve()), (stat := p.stat()).st_size, stat.st_mtime_ns) for p in inputs]
    key = json.dumps([FORMAT, name, stamps, settings], sort_keys=True, default=str)
    folder = cache_root(cache_dir) / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        yield folder, None
        return
    try:
        with atomic_write(folder) as aside:
            aside.mkdir(exist_ok=True)
            yield folder, aside
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.is_dir():
            return  # another process was faster and wrote the same table
        if error.filename is not None and str(folder.parent) not in str(error.filename):
            raise  # about another file
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or error
        raise UserError(
            f"{folder.parent}: cannot write the cache of annotations ({reason}); "
            "free some space, or give another folder (cache_dir=DIR)"
        ) from error


def ragged(rows: np.ndarray[Any, Any], values: np.ndarray[Any, Any], num_rows: int) -> pa.ListArray:
    """Lists of unequal length; slices of the result are views.

    Args:
        rows: Row of each value `[V]`, ascending.
        values: The values `[V]`.
        num_rows: Number of rows; those without a value are empty.

    >>> ragged(np.array([0, 2, 2]), np.array([5, 6, 7]), 3).slice(1).to_pylist()
    [[], [6, 7]]
    """
    offsets = np.insert(np.cumsum(np.bincount(rows, minlength=num_rows)), 0, 0)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))


def record_batch(
    paths: pa.Array | Sequence[str],
    positive: pa.Array | Sequence[Sequence[int]],
    negative: pa.Array | Sequence[Sequence[int]] | None,
    image_ids: pa.Array | Sequence[str],
) -> pa.RecordBatch:
    """Make a batch of rows for `cached_table`.

    Args:
        paths: Paths of the images.
        positive: Lists of label ids.
        negative: Lists of label ids; `None` for none.
        image_ids: Names of the images.
    """
    schema = FEATURES.arrow_schema
    paths = pa.array(paths, pa.string())
    image = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], ["bytes", "path"])
    columns = [image, positive, [[]] * len(paths) if negative is None else negative, image_ids]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
