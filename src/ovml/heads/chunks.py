"""Chunks of labels or images that bound the memory of a head."""

from __future__ import annotations

import torch
from torch import Tensor

CPU_BUDGET, DEVICE_BUDGET = 2**22, 2**26
"""Label-patch similarities per chunk: 16 MB on a CPU, about the size of its cache, and 256 MB on other devices."""


def chunks(rows: Tensor, numbers_per_row: int, budget: int | None = None) -> list[Tensor]:
    """Split rows `[N, ...]` into chunks of at least one that fit the budget of their device.

    While a graph is traced there is one chunk, because a loop cannot run over symbolic sizes.

    Args:
        rows: The rows.
        numbers_per_row: Numbers in memory for each row.
        budget: Numbers in memory at once. Default: `CPU_BUDGET` or `DEVICE_BUDGET`.

    >>> [len(chunk) for chunk in chunks(torch.zeros(5, 2), 2**21)]
    [2, 2, 1]
    """
    if torch.compiler.is_compiling():
        return [rows]
    budget = budget or (CPU_BUDGET if rows.device.type == "cpu" else DEVICE_BUDGET)
    return list(torch.split(rows, max(1, budget // max(1, numbers_per_row))))
