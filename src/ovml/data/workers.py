"""How many processes read images."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

MOST_WORKERS = 16
"""They read about 5,000 images of 500 x 375 pixels per second, more than a GPU trains on."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
SHARED_MEMORY = "/dev/shm"
FEW_IMAGES = 128
"""Reading fewer takes less time than starting processes."""


def choose_workers(rows: Any, processes: int = 1, batch_bytes: int = 0) -> int:
    """Number of processes that read the rows of a split: one per core, divided among the processes of this machine.

    It is 0 for few rows; for streams, whose order depends on it; and in a script of the user's where starting a process
    would run the script again, which is not so on Linux before Python 3.14.

    Args:
        rows: A `datasets.Dataset`, or a stream.
        processes: Processes of this machine that train together.
        batch_bytes: Size of a batch. Batches are handed over in shared memory, of which a container may have little:
            each worker of two loaders may hold three batches there.

    Example:
        >>> choose_workers(range(20))
        0
    """
    if not hasattr(rows, "__len__") or len(rows) < FEW_IMAGES or not _can_start():
        return 0
    most = [cores() // processes, MOST_WORKERS]
    if batch_bytes:
        most.append(shared_memory() // (6 * batch_bytes) // processes)
    return min(most)


def cores() -> int:
    """Number of cores that this process may use, by its affinity and the quota of its container."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return found if quota == "max" else max(1, min(found, int(quota) // int(period)))
    except (OSError, ValueError):  # another system, or an older kind of container
        return found


def shared_memory() -> int:
    """Free bytes of shared memory; half of it is left to others."""
    try:
        free = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return 2**40  # another system, which has no place of its own for it
    return free.f_bavail * free.f_frsize // 2


def _can_start() -> bool:
    """Whether processes can be started without a script that is written for it (`if __name__ == "__main__"`)."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if method == "fork":
        return True
    main = sys.modules["__main__"]
    module = getattr(getattr(main, "__spec__", None), "name", None)
    script = Path(getattr(main, "__file__", None) or "none").stem
    return (module or script).split(".")[0] == "ovml"
