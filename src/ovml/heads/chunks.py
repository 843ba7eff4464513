"""How much a head computes at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ovml.heads import local


def chunk_length(numbers_per_row: int, device: torch.device) -> int:
    """Rows that are taken at once, one at least.

    Args:
        numbers_per_row: Numbers that are held for each of them.
        device: On which; its budget is that of `ovml.heads.local`.

    >>> chunk_length(2**20, torch.device("cpu"))
    4
    """
    budget = local.CPU_BUDGET if device.type == "cpu" else local.DEVICE_BUDGET
    return max(1, budget // max(1, numbers_per_row))


def chunks(rows: Tensor, numbers_per_row: int) -> list[Tensor]:
    """Cut rows `[N, ...]` into chunks that fit the budget of their device.

    Where a graph is traced there is one chunk: sizes are symbols then, over which no loop can run.

    >>> [len(chunk) for chunk in chunks(torch.zeros(5, 2), 2**21)]
    [2, 2, 1]
    """
    if torch.compiler.is_compiling():
        return [rows]
    return list(torch.split(rows, chunk_length(numbers_per_row, rows.device)))
