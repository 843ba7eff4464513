"""How many processes read images."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

MOST_WORKERS = 16
"""They read about 5,000 images of 500 x 375 pixels per second, more than a GPU trains on."""
FEW_IMAGES = 128
"""Reading fewer takes less time than starting processes."""


def choose_workers(rows: Any, processes: int = 1) -> int:
    """Number of processes that read the rows of a split: one per core, divided among the processes of this machine.

    It is 0 for few rows; for streams, whose order depends on it; and in a script of the user's where starting a process
    would run the script again, which is not so on Linux before Python 3.14.

    Args:
        rows: A `datasets.Dataset`, or a stream.
        processes: Processes of this machine that train together.

    Example:
        >>> choose_workers(range(20))
        0
    """
    if not hasattr(rows, "__len__") or len(rows) < FEW_IMAGES or not _can_start():
        return 0
    return min(cores() // processes, MOST_WORKERS)


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _can_start() -> bool:
    """Whether processes can be started without a script that is written for it (`if __name__ == "__main__"`)."""
    if multiprocessing.get_start_method() == "fork":
        return True
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "none")
    return "ovml" in (script.stem, script.parent.name)
