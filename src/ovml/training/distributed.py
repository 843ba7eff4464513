"""Training by several processes: the mean over all images, and models that are cut into shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ovml.utils.errors import UserError


def image_share(images: int, device: torch.device) -> Tensor:
    """Factor of a process's loss that makes the mean over processes the mean over all their images.

    Args:
        images: Number of images that this process's loss is a mean over; 0 is allowed.
        device: Where the processes exchange it.

    Returns:
        `processes * images / all images`, a scalar: 1 where all have the same number.
    """
    own = torch.tensor(float(images), device=device)
    if not (distributed.is_available() and distributed.is_initialized()):
        return own.clamp(max=1)
    total = own.clone()
    distributed.all_reduce(total)
    return distributed.get_world_size() * own / total.clamp(min=1)


def cuts_models(strategy: Any) -> bool:
    """Whether a Lightning strategy cuts a model into shards in place, so that it serves no other trainer afterwards.

    Raises:
        UserError: It would write checkpoints in shards, one file a process.
    """
    from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

    if isinstance(strategy, FSDPStrategy):
        in_shards, option = strategy._state_dict_type == "sharded", "state_dict_type full"
    elif isinstance(strategy, ModelParallelStrategy):
        in_shards, option = strategy._save_distributed_checkpoint, "save_distributed_checkpoint false"
    else:
        return False
    if in_shards:
        raise UserError(f"trainer.strategy: ovml keeps a checkpoint in one file; add --trainer.strategy.{option}")
    return True


def shard(model: nn.Module, blocks: Iterable[nn.Module], mesh: Any, entries: Iterable[str]) -> None:
    """Cut a model's parameters into shards, one a process (FSDP2: `torch.distributed.fsdp.fully_shard`).

    A block's parameters are put together while it runs; those outside of blocks while an entry runs. What is frozen
    may stand beside what learns. Does nothing to a model that is cut already.

    Args:
        model: Changed in place: its parameters become `DTensor`s.
        blocks: Modules inside it that are large and called one after the other.
        mesh: Processes of one dimension.
        entries: Names of the model's methods that use its parameters.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(model, FSDPModule):
        return
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for entry in entries:
        register_fsdp_forward_method(model, entry)
