"""The processes that evaluate together, and what they exchange."""

from __future__ import annotations

import os
import platform
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed


class Processes:
    """This process, alone or with the others of a group of `torch.distributed`.

    All of them must call the same methods in the same order.

    Args:
        device: Where tensors are when they are exchanged; NCCL takes those of a GPU only.
        together: Whether there are others.
        group: The group. Default: all processes.

    Attributes:
        rank: Number of this process among `size`.
    """

    def __init__(self, device: torch.device, together: bool, group: Any = None) -> None:
        self.device = device
        self.group = group
        self.size = distributed.get_world_size(group) if together else 1
        self.rank = distributed.get_rank(group) if together else 0

    def gather(self, values: Tensor) -> Tensor:
        """Tensors of one shape and type of all processes, `[size, *shape]`."""
        if self.size == 1:
            return values.unsqueeze(0)
        values = values.to(self.device).contiguous()
        found = [torch.empty_like(values) for _ in range(self.size)]
        distributed.all_gather(found, values, group=self.group)
        return torch.stack(found)

    def total(self, values: Tensor) -> Tensor:
        """Sum over processes, on the CPU: of whole numbers, or of few others, which are added in order of rank."""
        if self.size == 1 or values.is_floating_point():
            return self.gather(values).sum(dim=0).cpu()
        summed = values.to(self.device, copy=True)
        distributed.all_reduce(summed, group=self.group)
        return summed.cpu()

    def exchange(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Send a part to each process, and receive one from each.

        Args:
            parts: As many one-dimensional tensors as there are processes, of one type on all of them.
        """
        outgoing = [part.nbytes for part in parts]
        incoming = self.gather(torch.tensor(outgoing))[:, self.rank].tolist()
        sent = torch.cat(list(parts)).to(self.device)
        # As bytes, because not every backend knows every type.
        received = torch.empty(sum(incoming), dtype=torch.uint8, device=self.device)
        distributed.all_to_all_single(received, sent.view(torch.uint8), incoming, outgoing, group=self.group)
        return list(received.view(sent.dtype).split([size // sent.itemsize for size in incoming]))

    def threads(self) -> int:
        """Threads that each process may use while the others of its machine do the same work: as many on all of them.

        Launchers such as `torchrun` set `OMP_NUM_THREADS=1` where a machine has several processes.
        """
        if self.size == 1:
            return torch.get_num_threads()
        machine = torch.tensor(zlib.crc32(platform.node().encode()))
        neighbours = int((self.gather(machine).cpu() == machine).sum())
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        own = max(torch.get_num_threads(), cores // neighbours)
        return int(self.gather(torch.tensor(own)).min())
