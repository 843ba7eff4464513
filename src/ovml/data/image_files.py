"""Checks which annotated images are on disk and readable."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ovml.data.cache import Table, cached_folder, seal
from ovml.data.samplers import Indices
from ovml.utils.files import atomic_write
from ovml.utils.images import formats, load_image
from ovml.utils.progress import track

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class ImageCheck:
    """Result of looking for the images of a table.

    Attributes:
        listed: Number of rows.
        missing: Rows whose file does not exist or is a failed download.
        unreadable: Rows whose file exists but cannot be read; known after `verify_images`.
        folder: Cache folder of the result.
    """

    listed: int
    missing: Indices
    unreadable: Indices
    folder: Path

    @property
    def lost(self) -> Indices:
        """Rows that cannot be used."""
        return np.union1d(self.missing, self.unreadable)

    @property
    def kept(self) -> Indices:
        """Rows that can be used."""
        return np.delete(np.arange(self.listed), self.lost)


def check_images(
    table: Table, cache_dir: str | Path | None, min_bytes: int = 0, placeholder_copies: int = 0
) -> ImageCheck:
    """Look for the image files of a table; the result is cached until one of their folders changes.

    Args:
        table: Its rows name the images. Images that are part of the rows need no file.
        cache_dir: See `ovml.data.cache.cache_root`.
        min_bytes: Smaller files count as missing.
        placeholder_copies: Files with at least this many identical copies count as missing: placeholders that a server
            sends for deleted images. 0 turns this off.

    Raises:
        UserError: The cache cannot be written.
    """
    is_inside = _is_inside(table)
    if is_inside.all():
        none = np.zeros(0, dtype=np.int64)
        return ImageCheck(len(table.rows), none, none, table.folder)
    folders = image_folders(table)
    settings = {"table": table.folder.name, "min_bytes": min_bytes, "placeholder_copies": placeholder_copies}
    with cached_folder(cache_dir, f"{table.folder.name}-images", folders, settings) as (folder, aside):
        if aside is not None:
            # A file's size takes a system call, so it is read only if it is needed.
            found = _files(folders, min_bytes, with_size=bool(min_bytes or placeholder_copies))
            if placeholder_copies:
                sizes = dict(found)
                fakes = set(_placeholders(sizes, placeholder_copies))
                found = ((path, size) for path, size in sizes.items() if path not in fakes)
            is_found = pc.is_in(_paths(table), value_set=_strings(path for path, _ in found)).to_numpy()
            np.save(aside / "missing.npy", np.flatnonzero(~(is_found | is_inside)))
            np.save(aside / "unreadable.npy", np.zeros(0, dtype=np.int64))
    missing, unreadable = (np.load(folder / f"{name}.npy") for name in ("missing", "unreadable"))
    return ImageCheck(len(table.rows), missing, unreadable, folder)


def verify_images(
    table: Table, check: ImageCheck, depth: Literal["header", "full"] = "full", workers: int | None = None
) -> ImageCheck:
    """Open every image that was found, and record those that cannot be read.

    Args:
        table: Its rows name the images.
        check: Result of `check_images`.
        depth: `header` reads each file's header; `full` decodes it, which also finds truncated files.
        workers: Threads. Default: one per core.
    """
    present = np.delete(np.arange(check.listed), check.missing)
    present = present[~_is_inside(table)[present]]
    is_broken = partial(_is_broken, depth=depth)
    paths = (path.as_py() for path in _paths(table).take(pa.array(present)))
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        results = track(pool.map(is_broken, paths), f"reading {len(present):,} images", total=len(present))
        unreadable = present[np.fromiter(results, dtype=bool, count=len(present))]
    with atomic_write(check.folder / "unreadable.npy") as beside, open(beside, "wb") as file:
        np.save(file, unreadable)
    seal(check.folder, "unreadable.npy")
    return replace(check, unreadable=unreadable)


def lost_paths(table: Table, rows: Sequence[int] | Indices) -> list[str]:
    """Paths of the images in some rows."""
    paths: list[str] = _paths(table).take(pa.array(rows, pa.int64())).to_pylist()
    return paths


def _is_inside(table: Table) -> Mask:
    """Rows whose image is part of the row."""
    mask: Mask = pc.struct_field(table.rows.data.column("image"), "bytes").is_valid().to_numpy()
    return mask


def _paths(table: Table) -> pa.ChunkedArray:
    return pc.struct_field(table.rows.data.column("image"), "path")


def _strings(values: Iterator[str]) -> pa.ChunkedArray:
    """An Arrow array of many strings, which takes a fraction of the memory of Python strings."""
    pieces = []
    while piece := list(islice(values, 1 << 20)):
        pieces.append(pa.array(piece, pa.string()))
    return pa.chunked_array(pieces, pa.string())


def image_folders(table: Table) -> list[Path]:
    """Folders of the images, if they exist."""
    found: set[str] = set()
    for chunk in _paths(table).chunks:  # chunk by chunk, which bounds the memory
        found.update(pc.unique(pc.replace_substring_regex(chunk, r"/[^/]*$", "")).drop_null().to_pylist())
    return [folder for folder in map(Path, sorted(found)) if folder.is_dir()]


def _files(folders: Sequence[Path], min_bytes: int, with_size: bool) -> Iterator[tuple[str, int]]:
    for folder in track(folders, "looking for images"):
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    size = entry.stat().st_size if with_size else 0
                    if size >= min_bytes and entry.is_file():
                        yield entry.path, size
                except OSError:  # of a link to nothing or to itself, which counts as missing
                    continue


def _placeholders(sizes: dict[str, int], copies: int) -> Iterator[str]:
    """Files with many identical copies: same size, then same bytes in the middle, then same content."""
    common = {size for size, count in Counter(sizes.values()).items() if count >= copies}
    suspects: dict[Any, list[str]] = defaultdict(list)
    for path in track([p for p, size in sizes.items() if size in common], "looking for placeholders"):
        with open(path, "rb") as file:
            file.seek(sizes[path] // 2)
            suspects[sizes[path], file.read(64)].append(path)
    for group in (g for g in suspects.values() if len(g) >= copies):
        same: dict[bytes, list[str]] = defaultdict(list)
        for path in group:
            same[hashlib.sha256(Path(path).read_bytes()).digest()].append(path)
        for twins in same.values():
            if len(twins) >= copies:
                yield from twins


def _is_broken(path: str, depth: Literal["header", "full"]) -> bool:
    try:
        if depth == "full":
            load_image(path)
        else:
            Image.open(path, formats=formats()).close()
    except Exception:  # a malformed image may raise any
        return True
    return False
