"""Training with several processes: the mean over all images, and sharded models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ovml.utils.errors import UserError


def world_size() -> int:
    """Number of processes that train together.

    >>> world_size()
    1
    """
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def image_share(images: int, device: torch.device) -> Tensor:
    """Return the factor of a process's loss that turns the mean over processes into the mean over all images.

    Args:
        images: Number of images in this process's mean; 0 is allowed.
        device: Device on which the processes exchange the number.

    Returns:
        `processes * images / all images`, a scalar; 1 if all processes have the same number of images.
    """
    own = torch.tensor(float(images), device=device)
    if world_size() == 1:
        return own.clamp(max=1)
    total = own.clone()
    distributed.all_reduce(total)
    return world_size() * own / total.clamp(min=1)


def cuts_models(strategy: Any) -> bool:
    """Whether a Lightning strategy shards a model in place, so that no other trainer can use it afterwards.

    Raises:
        UserError: The strategy writes sharded checkpoints, one file per process.
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


def shard(model: nn.Module, blocks: Iterable[nn.Module], mesh: Any) -> None:
    """Shard a LightningModule's parameters over processes with FSDP2 (`torch.distributed.fsdp.fully_shard`).

    Parameters of a block are gathered while the block runs, all other parameters while a step runs. Frozen
    and trained parameters may be mixed. A model that is already sharded is left unchanged.

    Args:
        model: The model, changed in place: its parameters become `DTensor`s.
        blocks: Large modules of the model that run one after the other.
        mesh: One-dimensional device mesh.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(model, FSDPModule):
        return
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for entry in ("training_step", "validation_step", "test_step", "predict_step"):
        register_fsdp_forward_method(model, entry)
