"""How much a head computes at once."""

from __future__ import annotations

import torch
from torch import Tensor

CPU_BUDGET, DEVICE_BUDGET = 2**22, 2**26
"""Label-patch similarities held at once: as many as a processor's cache holds (16 MB), and 256 MB on other devices."""


def chunk_length(numbers_per_row: int, device: torch.device, budget: int | None = None) -> int:
    """Rows that are taken at once, one at least.

    Args:
        numbers_per_row: Numbers that are held for each of them.
        device: On which.
        budget: Numbers held at once. Default: what suits the device.

    >>> chunk_length(2**20, torch.device("cpu"))
    4
    """
    budget = budget or (CPU_BUDGET if device.type == "cpu" else DEVICE_BUDGET)
    return max(1, budget // max(1, numbers_per_row))


def chunks(rows: Tensor, numbers_per_row: int, budget: int | None = None) -> list[Tensor]:
    """Cut rows `[N, ...]` into chunks that fit the budget of their device.

    Where a graph is traced there is one chunk: sizes are symbols then, over which no loop can run.

    >>> [len(chunk) for chunk in chunks(torch.zeros(5, 2), 2**21)]
    [2, 2, 1]
    """
    if torch.compiler.is_compiling():
        return [rows]
    return list(torch.split(rows, chunk_length(numbers_per_row, rows.device, budget)))
