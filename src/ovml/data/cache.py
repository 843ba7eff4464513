"""Cache of annotations: read once from a data set's files, written as Arrow, opened memory-mapped.

A cache folder has a list of its files with their sizes and checksums, written last. A folder without one, or whose
files differ from it, is made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from ovml.utils.errors import UserError, causes
from ovml.utils.files import FULL, atomic_write, write_text

logger = logging.getLogger(__name__)

FORMAT = 3
"""Version of the cached tables, part of every key; increase it when the same files give another table."""
SEAL = "files.json"
"""File of a cache folder that lists the others."""
SAMPLE_BYTES = 1 << 20
"""Bytes at each end of a file that its checksum covers, so that large files are opened quickly."""
STALE_SECONDS = 24 * 3600
"""Age from which the unfinished folder of another process is taken for left over."""

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "positive": datasets.List(datasets.Value("int32")),
        "negative": datasets.List(datasets.Value("int32")),
        "image_id": datasets.Value("string"),
    }
)
"""Columns of every data set: image, ids of the labels present, ids of the labels verified absent, name."""
LABEL_FEATURES = datasets.Features({name: feature for name, feature in FEATURES.items() if name != "image"})
"""Those beside the image."""


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
        OSError: The disk is full.
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


def cache_path(cache_dir: str | Path | None, name: str, inputs: Sequence[Path], settings: Mapping[str, Any]) -> Path:
    """Path of a cache folder, whether it is there or not."""
    stamps = [(str(p.resolve()), (stat := p.stat()).st_size, stat.st_mtime_ns) for p in inputs]
    key = json.dumps([FORMAT, name, stamps, settings], sort_keys=True, default=str)
    return cache_root(cache_dir) / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


@contextmanager
def cached_folder(
    cache_dir: str | Path | None, name: str, inputs: Sequence[Path], settings: Mapping[str, Any]
) -> Iterator[tuple[Path, Path | None]]:
    """Yield a cache folder's path and, unless it is there and whole, a temporary folder to fill, which replaces it.

    Raises:
        UserError: The folder cannot be written.
        OSError: The disk is full.
    """
    folder = cache_path(cache_dir, name, inputs, settings)
    is_there = folder.is_dir()
    if is_there:
        damaged = damaged_file(folder)
        if damaged is None:
            yield folder, None
            return
        logger.warning("%s: %s is damaged or missing, so this cache is made again", folder, damaged)
    try:
        _clear_leftovers(folder.parent)
        with atomic_write(folder, replace_folder=is_there) as aside:
            aside.mkdir(exist_ok=True)
            yield folder, aside
            seal(aside, *(path.name for path in aside.iterdir()))
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.is_dir():
            return  # another process was faster and wrote the same table
        if error.filename is not None and str(folder.parent) not in str(error.filename):
            raise  # about another file
        what = f"cannot write the cache of annotations ({error.strerror or error})"
        if full_disk(error):
            what = "cannot write the cache of annotations (the disk is full), which cache_dir=DIR puts elsewhere"
            raise OSError(error.errno, what, str(folder.parent)) from error
        raise UserError(f"{folder.parent}: {what}; give another folder (cache_dir=DIR)") from error


def seal(folder: Path, *names: str) -> None:
    """List files of a cache folder with their sizes and checksums; called again for those that are replaced."""
    file = folder / SEAL
    listed = json.loads(file.read_text()) if file.is_file() else {}
    write_text(file, json.dumps({**listed, **{name: _stamp(folder / name) for name in names}}))


def damaged_file(folder: Path) -> str | None:
    """Name of a file of a cache folder that is not as listed, or of the list itself; `None` if all are."""
    name = SEAL
    try:
        for name, stamp in json.loads((folder / SEAL).read_bytes()).items():
            if _stamp(folder / name) != stamp:
                return str(name)
    except (OSError, ValueError, AttributeError):
        return name
    return None


def _stamp(path: Path) -> list[int]:
    """Size of a file, and checksum of its first and last bytes."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        checksum = zlib.crc32(file.read(SAMPLE_BYTES))
        file.seek(max(SAMPLE_BYTES, size - SAMPLE_BYTES))
        return [size, zlib.crc32(file.read(), checksum)]


def _clear_leftovers(root: Path) -> None:
    """Remove unfinished folders of processes that ended long ago."""
    for left in [*root.glob(".*-*.part-*"), *root.glob(".*-*.old-*")]:
        with suppress(OSError):  # another process may remove it at the same time
            if max(path.stat().st_mtime for path in (left, *left.rglob("*"))) < time.time() - STALE_SECONDS:
                shutil.rmtree(left)


def full_disk(error: BaseException | None) -> OSError | None:
    """The full disk that is the cause of an error; `None` if there is another one."""
    return next((cause for cause in causes(error) if isinstance(cause, OSError) and cause.errno in FULL), None)


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
