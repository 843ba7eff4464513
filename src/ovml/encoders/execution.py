"""How the towers run their blocks: as they are, compiled, or with activations computed twice instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovml.encoders.prefix import pack, packed_block, unpack
from ovml.utils.errors import UserError


@dataclass(frozen=True)
class Execution:
    """How a tower's blocks are run. The numbers are the same but for the last digits of float32.

    Attributes:
        compile: Run the blocks through `torch.compile`.
        gradient_checkpointing: Of a block that learns keep the input only; compute the rest again in the backward pass.
    """

    compile: bool = False
    gradient_checkpointing: bool = False


def run_bidirectional_blocks(layers: Iterable[nn.Module], hidden_states: Tensor, execution: Execution) -> Tensor:
    """Run hidden states `[B, T, W]` through blocks whose tokens all see each other.

    These are the vision towers' and, of SigLIP, the text tower's.
    """
    return _run(_bidirectional_block, layers, hidden_states, execution)


def run_text_blocks(
    layers: Iterable[nn.Module], hidden_states: Tensor, mask: Tensor | None, execution: Execution
) -> Tensor:
    """Run hidden states `[N, T, W]` through causal blocks: CLIP's text tower. The mask is `None` with SDPA."""
    return _run(_text_block, layers, hidden_states, execution, mask)


def run_text_blocks_with_prefix(
    layers: Iterable[nn.Module], hidden_states: Tensor, num_shared: int, execution: Execution
) -> Tensor:
    """Run hidden states `[N, T, W]` whose first `num_shared` tokens are the same in all rows; returns the others'.

    It calls the parts of a block one by one: see `is_whole`.
    """
    packed = pack(hidden_states, num_shared)
    packed = _run(packed_block, layers, packed, execution, num_shared, len(hidden_states))
    return unpack(packed, num_shared, len(hidden_states))


def is_whole(layer: nn.Module) -> bool:
    """Whether a block can only be called as a whole: torch wrapped it, say to put its shards together first (FSDP)."""
    return type(layer).__module__.startswith("torch.")


def _bidirectional_block(layer: nn.Module, hidden_states: Tensor) -> Tensor:
    out: Tensor = layer(hidden_states, None)
    return out


def _text_block(layer: nn.Module, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    out: Tensor = layer(hidden_states, mask, is_causal=True)
    return out


def _run(
    block: Callable[..., Tensor], layers: Iterable[nn.Module], hidden_states: Tensor, execution: Execution, *args: Any
) -> Tensor:
    # A batch of one would be compiled once more, since a size of 1 broadcasts; as it is, it costs next to nothing.
    if execution.compile and len(hidden_states) > 1:
        block = _compiled(block)
    for layer in layers:
        learns = hidden_states.requires_grad or any(p.requires_grad for p in layer.parameters())
        # Frozen blocks run in one and the same mode, in training too, and so need no compiled form of their own.
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            if execution.gradient_checkpointing and torch.is_grad_enabled():
                hidden_states = checkpoint(block, layer, hidden_states, *args, use_reentrant=False)
            else:
                hidden_states = block(layer, hidden_states, *args)
    return hidden_states


@cache
def _compiled(block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The compiled form of a block, one for all layers of all models: equal layers share what was compiled.

    It hangs on no module, so that copies, checkpoints and the names of weights know nothing of it. Sizes are symbols
    from the first batch on: neither an epoch's last batch nor labels of another length compile anything anew.
    """
    return torch.compile(block, dynamic=True)


@cache
def check_compiler(device: torch.device) -> None:
    """See that `torch.compile` works on a device.

    Raises:
        UserError: It does not: on the CPU most often for want of a C++ compiler.
    """
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(2, device=device))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.compile: torch.compile does not work here ({reason}); "
            "install a C++ compiler (g++) and Python's headers, or leave model.compile off"
        ) from error
