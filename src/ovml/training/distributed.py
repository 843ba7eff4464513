"""Training with several processes: the mean over all images, and sharded models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ovml.utils.errors import UserError
from ovml.utils.tensors import full_precision


def world_size() -> int:
    """Number of processes that train together.

    >>> world_size()
    1
    """
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def image_share(images: int, device: torch.device) -> Callable[[], Tensor | float]:
    """Start to compute the factor of a process's loss that turns the mean over processes into that over all images.

    Args:
        images: Number of images in this process's mean; 0 is allowed.
        device: Device on which the processes exchange the number.

    Returns:
        A function, which all processes must call: it waits for the exchange and returns
        `processes * images / all images`, a scalar; 1 if all processes have the same number of images.
    """
    if world_size() == 1:
        return lambda: 1.0
    total = torch.full((), float(images), device=device)  # filled there: a copy would be waited for
    exchange: Any = distributed.all_reduce(total, async_op=True)

    def share() -> Tensor:
        exchange.wait()
        return world_size() * images / total.clamp(min=1)

    return share


def embed_over_processes(embed: Callable[[tuple[str, ...]], Tensor], names: tuple[str, ...]) -> Tensor:
    """Embed label names, of which each process embeds its share; all processes must call it with the same names.

    Args:
        embed: Embeds names as `[L, ...]`.
        names: The names; processes take turns, so that their shares are of similar length.

    Returns:
        The embeddings of all names, at least in float32. Their gradients are added up over processes and reach the
        process that computed them, so the mean of the parameters' gradients over processes is what it is without
        shares.
    """
    size = world_size()
    if size == 1 or len(names) < size:
        return embed(names)
    own, length = names[distributed.get_rank() :: size], -(-len(names) // size)
    own += own[-1:] * (length - len(own))  # shares of one length: all processes call their towers as often
    gathered: Tensor = _Gathered.apply(full_precision(embed(own)))  # type: ignore[no-untyped-call]
    return gathered.transpose(0, 1).flatten(0, 1)[: len(names)]


class _Gathered(torch.autograd.Function):
    """Rows `[l, ...]` of all processes, which have equally many: `[size, l, ...]`."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.device, own = own.device, own.contiguous()
        found = [torch.empty_like(own) for _ in range(world_size())]
        distributed.all_gather(found, own)
        return torch.stack(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = torch.empty(gradient.shape, dtype=gradient.dtype, device=ctx.device).copy_(gradient)
        distributed.all_reduce(total)
        return total[distributed.get_rank()]


def ignore_constant_buffers(model: nn.Module) -> None:
    """Let DDP leave out the buffers of a classifier's towers that never change, such as numbers of positions.

    DDP sends all buffers to all processes before each step. What remains are statistics, as of batch norm, and
    buffers of other parts.
    """
    constant = [
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if f"{prefix}.".startswith(("model.image_encoder.", "model.prompt.", "teacher."))
        and not isinstance(module, _BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
        if not buffer.is_floating_point()
    ]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, constant)


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
