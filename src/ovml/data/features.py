"""Image features of a data set's rows on disk, in the place of its pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ovml.data.rows import NO_ROW, RowReader
from ovml.utils.errors import UserError

if TYPE_CHECKING:
    import datasets


class FeatureStore:
    """Global and patch embeddings of rows, memory-mapped: `[N, 1+P, D]`, the global embedding first.

    Args:
        path: File, written by `create` and `write`.
        writable: Whether `write` may be called.
    """

    def __init__(self, path: Path, writable: bool = False) -> None:
        self.path = path
        self.features = np.load(path, mmap_mode="r+" if writable else "r")

    @classmethod
    def create(cls, path: Path, shape: tuple[int, int, int], dtype: str = "float32") -> FeatureStore:
        """Make a file of zeros.

        Args:
            path: File.
            shape: `(N, 1+P, D)`.
            dtype: `float32`, or `float16` at half the size and with rounded features.

        Raises:
            UserError: The disk has no room for it.
        """
        size, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
        if size > free:
            raise UserError(
                f"{path.parent}: image features take {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
                "free some space, give another folder, or leave the feature cache out"
            )
        np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape).flush()
        return cls(path, writable=True)

    def __len__(self) -> int:
        return len(self.features)

    def write(self, start: int, features: Tensor) -> None:
        """Keep the features `[B, 1+P, D]` of the rows from `start` on."""
        self.features[start : start + len(features)] = features.float().cpu().numpy()

    def read(self, row: int) -> Tensor:
        """Features `[1+P, D]` of a row, float32."""
        return torch.from_numpy(self.features[row].astype(np.float32))


class FeatureRows(Dataset[dict[str, Any]]):
    """Rows whose pictures are kept as features; read by `(epoch, index)` as `TensorRows` are.

    Args:
        rows: With columns `positive`, `negative` and `image_id`.
        store: Features of the rows.
        reader: Makes targets.
    """

    def __init__(self, rows: datasets.Dataset, store: FeatureStore, reader: RowReader) -> None:
        self.rows = rows.select_columns(["positive", "negative", "image_id"])
        self.store = store
        self.reader = reader

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """Read rows by `(epoch, index)`; called by the data loader with a whole batch."""
        if keys == [(0, NO_ROW)]:
            return [{}]
        columns = self.rows[[index for _, index in keys]]
        return [
            {
                "features": self.store.read(index),
                "labels": self.reader.targets(columns["positive"][position], columns["negative"][position]),
                "image_id": str(columns["image_id"][position]),
            }
            for position, (_, index) in enumerate(keys)
        ]
