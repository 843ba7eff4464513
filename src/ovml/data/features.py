"""Image features of a data set's rows on disk, read instead of the images."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from ovml.data.rows import RowReader, TensorRows
from ovml.utils.errors import UserError
from ovml.utils.files import atomic_write

ROWS_PER_FILE = 256
"""Rows of a file, at least."""
MOST_FILES = 128
"""Files of a store: few enough to have them all open."""


def file_rows(num_rows: int) -> list[range]:
    """The rows in each file of a store.

    >>> file_rows(600)
    [range(0, 256), range(256, 512), range(512, 600)]
    """
    size = max(ROWS_PER_FILE, -(-num_rows // MOST_FILES))
    return [range(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def file_name(number: int) -> str:
    """Name of a file of a store."""
    return f"features-{number:03d}.npy"


def write_features(path: Path, num_rows: int, batches: Iterable[Tensor], dtype: str = "float32") -> None:
    """Write a file of a store, which appears when it is complete.

    Args:
        path: The file.
        num_rows: Its number of rows.
        batches: Features `[B, 1+P, D]` of consecutive rows: the global embedding first, then those of patches.
        dtype: `float32`, or `float16` for half the size and rounded features.

    Raises:
        ValueError: There are fewer batches than rows.
    """
    with atomic_write(path) as beside, open(beside, "wb") as file:
        start = 0
        for batch in batches:
            features = batch.float().cpu().numpy().astype(dtype)
            if start == 0:
                shape = (num_rows, *features.shape[1:])
                header = {"descr": np.lib.format.dtype_to_descr(features.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(features.data)  # not memory-mapped: a full disk is an error, not the end of the process
            start += len(features)
            if start == num_rows:
                return
        raise ValueError(f"{path}: {start} of {num_rows} rows")


def check_room(folder: Path, size: int) -> None:
    """Check that a disk has room for image features of `size` bytes; raises a `UserError`."""
    if size > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{folder}: image features take {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
            "free some space, give another folder, or turn the feature cache off"
        )


class FeatureStore:
    """Global and patch embeddings of rows `[N, 1+P, D]`, the global embedding first, in memory-mapped files.

    Args:
        folder: With the files of all rows, as `write_features` writes them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[int, np.ndarray[Any, Any]] = {}
        self._rows = len(self._file(0))

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, whose content would be copied."""
        return {**vars(self), "_files": {}}

    def read(self, row: int) -> Tensor:
        """Features `[1+P, D]` of a row, float32."""
        number, place = divmod(row, self._rows)
        return torch.from_numpy(self._file(number)[place].astype(np.float32))

    def _file(self, number: int) -> np.ndarray[Any, Any]:
        if number not in self._files:
            self._files[number] = np.load(self.folder / file_name(number), mmap_mode="r")
        return self._files[number]


class FeatureRows(TensorRows):
    """Rows with image features from a store instead of images.

    Args:
        rows: With columns `positive`, `negative` and `image_id`.
        store: Features of the rows.
        reader: Makes targets.
    """

    def __init__(self, rows: datasets.Dataset, store: FeatureStore, reader: RowReader) -> None:
        super().__init__(rows.select_columns(["positive", "negative", "image_id"]), reader)
        self.store = store

    def _read(self, row: Mapping[str, Any], epoch: int, index: int) -> dict[str, Any]:
        labels = self.reader.targets(row["positive"], row["negative"])
        return {"features": self.store.read(index), "labels": labels, "image_id": str(row["image_id"]), "row": index}
