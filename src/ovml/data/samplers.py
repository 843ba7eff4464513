"""Samplers for training and evaluation, and the rows held out for validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DistributedSampler

from ovml.utils.errors import UserError

Indices = np.ndarray[Any, np.dtype[np.int64]]

NO_ROW = -1
"""Index of no row."""


def hold_out(num_rows: int, size: int, split: str) -> Indices:
    """Rows to train on, or those held out for validation: the same ones in every run, in ascending order.

    Args:
        num_rows: Number of rows.
        size: Rows to hold out.
        split: `train` or `validation`.

    Raises:
        UserError: `size` leaves no row for one of the two.

    Example:
        >>> [hold_out(6, 2, split).tolist() for split in ("train", "validation")]
        [[0, 1, 4, 5], [2, 3]]
    """
    if not 0 < size < num_rows:
        raise UserError(f"validation_size must be less than the {num_rows:,} training images; got {size}")
    order = np.random.default_rng(0).permutation(num_rows)
    return np.sort(order[:size] if split == "validation" else order[size:])


class TrainSampler(DistributedSampler[Any]):
    """Yields `(epoch, index)`, so that augmentation can depend on the epoch; equally many on every process.

    Args:
        given: Of `DistributedSampler`.
        reshuffle: Whether each epoch has an order of its own; otherwise all have that of epoch 0.
        options: See `given`.
    """

    def __init__(self, *given: Any, reshuffle: bool = True, **options: Any) -> None:
        super().__init__(*given, **options)
        self.reshuffle = reshuffle

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        self.epoch = epoch if self.reshuffle else 0
        indices = list(super().__iter__())
        self.epoch = epoch
        return ((epoch, index) for index in indices)


class EvalSampler(DistributedSampler[Any]):
    """Yields every row exactly once over all processes, in order.

    `DistributedSampler` repeats rows until all processes have the same number, which metrics would count twice.
    A process without any row yields `NO_ROW`, an empty batch, because it must take part in the collective sums.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, index) for index in self._share())

    def __len__(self) -> int:
        return len(self._share())

    def _share(self) -> Sequence[int]:
        return range(self.rank, len(self.dataset), self.num_replicas) or [NO_ROW]  # type: ignore[arg-type]
