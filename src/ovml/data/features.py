"""Image features of a data set's rows on disk, read instead of the images."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from ovml.data.rows import RowReader, TensorRows
from ovml.utils.errors import UserError


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
            dtype: `float32`, or `float16` for half the size and rounded features.

        Raises:
            UserError: The disk has no room for it.
        """
        size, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
        if size > free:
            raise UserError(
                f"{path.parent}: image features take {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
                "free some space, give another folder, or turn the feature cache off"
            )
        np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape).flush()
        return cls(path, writable=True)

    def __len__(self) -> int:
        return len(self.features)

    def write(self, start: int, features: Tensor) -> None:
        """Write the features `[B, 1+P, D]` of the rows from `start` on."""
        self.features[start : start + len(features)] = features.float().cpu().numpy()

    def read(self, row: int) -> Tensor:
        """Features `[1+P, D]` of a row, float32."""
        return torch.from_numpy(self.features[row].astype(np.float32))


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
