"""Chunks of labels or images that bound the memory of a head."""

from __future__ import annotations

import torch
from torch import Tensor

CPU_BUDGET, DEVICE_BUDGET = 2**22, 2**26
"""Label-patch similarities per chunk: 16 MB on a CPU, about the size of its cache, and 256 MB on other devices."""


def chunk_length(numbers_per_row: int, device: torch.device, budget: int | None = None) -> int:
    """Return the number of rows per chunk, at least 1.

    Args:
        numbers_per_row: Numbers in memory for each row.
        device: Device of the rows.
        budget: Numbers in memory at once. Default: `CPU_BUDGET` or `DEVICE_BUDGET`.

    >>> chunk_length(2**20, torch.device("cpu"))
    4
    """
    budget = budget or (CPU_BUDGET if device.type == "cpu" else DEVICE_BUDGET)
    return max(1, budget // max(1, numbers_per_row))


def chunks(rows: Tensor, numbers_per_row: int, budget: int | None = None) -> list[Tensor]:
    """Split rows `[N, ...]` into chunks that fit the budget of their device.

    While a graph is traced there is one chunk, because a loop cannot run over symbolic sizes.

    >>> [len(chunk) for chunk in chunks(torch.zeros(5, 2), 2**21)]
    [2, 2, 1]
    """
    if torch.compiler.is_compiling():
        return [rows]
    return list(torch.split(rows, chunk_length(numbers_per_row, rows.device, budget)))
