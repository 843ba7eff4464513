"""How the cores and GPUs of a Ray cluster are shared among models and tasks that read images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ovml.utils.errors import UserError, check_whole

LEAST = 0.01
"""Cores that a process reserves at least."""


class Plan(NamedTuple):
    """What each process of a run reserves.

    Attributes:
        workers: Models that run at once.
        gpus: GPUs of each: 1 or 0.
        cpus: Cores of each; no more than every one finds on a single machine.
        readers: Tasks that read images at once.
        reader_cpus: Cores of each.
    """

    workers: int
    gpus: int
    cpus: float
    readers: int
    reader_cpus: float

    @property
    def threads(self) -> int:
        """Threads of each model: the cores that it reserves."""
        return max(1, int(self.cpus))

    @property
    def blocks(self) -> int:
        """Blocks of images that exist at once: one that each reader makes, and two that wait for each model."""
        return self.readers + 2 * self.workers


def make_plan(nodes: Sequence[Mapping[str, float]], device: str, workers: int | None = None) -> Plan:
    """Share a cluster. Models run where GPUs are; images are read on any machine.

    Args:
        nodes: Resources of each machine that is alive: `CPU` and `GPU`.
        device: Torch device of the models.
        workers: Number of models. Default: one per GPU, or one per machine on the CPU.

    Raises:
        UserError: There are not enough GPUs, or no cores.

    Example:
        >>> make_plan([{"CPU": 64}, {"CPU": 16, "GPU": 2}], "cuda")
        Plan(workers=2, gpus=1, cpus=1, readers=78, reader_cpus=1)
        >>> make_plan([{"CPU": 8}, {"CPU": 8}], "cpu")
        Plan(workers=2, gpus=0, cpus=7, readers=2, reader_cpus=1)
    """
    cpus = [node.get("CPU", 0) for node in nodes]
    if not any(cpus):
        raise UserError("no machine of the Ray cluster has cores; start Ray with --num-cpus")
    if device.startswith("cuda"):
        gpus = [int(node.get("GPU", 0)) if own else 0 for node, own in zip(nodes, cpus, strict=True)]
        workers = sum(gpus) if workers is None else workers
        if not 0 < workers <= sum(gpus):
            raise UserError(
                f"workers: {max(workers, 1)} on {device} need a GPU each, the Ray cluster has {sum(gpus)}; "
                "give fewer, or another device"
            )
        # A model on a GPU keeps one core busy. At least half of the cores beside it read images.
        cores = _rounded(min(1.0, *(own / number / 2 for own, number in zip(cpus, gpus, strict=True) if number)))
        left = [own - cores * number for own, number in zip(cpus, gpus, strict=True)]
        return Plan(workers, 1, cores, *_readers(left))
    workers = sum(own > 0 for own in cpus) if workers is None else workers
    check_whole("Ray", 1, workers=workers)
    # A core of each machine, or half of its only one, reads images.
    usable = [own - 1 if own > 1 else own / 2 for own in cpus]
    if (share := _largest_share(usable, workers)) < LEAST:
        raise UserError(f"workers: {workers} are too many for the {sum(cpus):g} cores of the Ray cluster; give fewer")
    cores = _rounded(share)
    left, rest = [], workers
    for own, most in zip(cpus, usable, strict=True):
        placed = min(rest, math.floor(most / cores + 1e-9))
        left, rest = [*left, own - placed * cores], rest - placed
    return Plan(workers, 0, cores, *_readers(left))


def _largest_share(nodes: Sequence[float], workers: int) -> float:
    """The most cores that each worker can have if none of them is spread over two machines."""
    shares = sorted({own / number for own in nodes for number in range(1, workers + 1) if own}, reverse=True)
    return next(share for share in shares if sum(math.floor(own / share + 1e-9) for own in nodes) >= workers)


def _readers(left: Sequence[float]) -> tuple[int, float]:
    """Number of readers, and the cores of each, in what is left of the machines' cores."""
    cores = _rounded(min(1.0, max(left)))
    return sum(math.floor(own / cores + 1e-9) for own in left), cores


def _rounded(cores: float) -> float:
    """Whole cores, or hundredths of one, rounded down: Ray allows no other shares."""
    return math.floor(cores) if cores >= 1 else max(math.floor(100 * cores + 1e-9) / 100, LEAST)
