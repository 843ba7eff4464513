"""How the towers run their blocks: plain, compiled, or with gradient checkpointing."""

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
    """How a tower's blocks run. The options change results only in the last digits of float32.

    Attributes:
        compile: Run the blocks through `torch.compile`.
        gradient_checkpointing: Keep only the input of each trained block and recompute the rest in the backward pass.
    """

    compile: bool = False
    gradient_checkpointing: bool = False


def run_bidirectional_blocks(layers: Iterable[nn.Module], hidden_states: Tensor, execution: Execution) -> Tensor:
    """Run hidden states `[B, T, W]` through blocks with bidirectional attention.

    Vision towers and SigLIP's text tower consist of such blocks.
    """
    return _run(_bidirectional_block, layers, hidden_states, execution)


def run_text_blocks(
    layers: Iterable[nn.Module], hidden_states: Tensor, mask: Tensor | None, execution: Execution
) -> Tensor:
    """Run hidden states `[N, T, W]` through the causal blocks of CLIP's text tower. `mask` is `None` with SDPA."""
    return _run(_text_block, layers, hidden_states, execution, mask)


def run_text_blocks_with_prefix(
    layers: Iterable[nn.Module], hidden_states: Tensor, num_shared: int, execution: Execution
) -> Tensor:
    """Run hidden states `[N, T, W]` whose first `num_shared` tokens are the same in all rows.

    The modules inside a block are called one by one; see `is_whole`.

    Returns:
        Hidden states of the other tokens, `[N, T - num_shared, W]`.
    """
    packed = pack(hidden_states, num_shared)
    packed = _run(packed_block, layers, packed, execution, num_shared, len(hidden_states))
    return unpack(packed, num_shared, len(hidden_states))


def is_whole(layer: nn.Module) -> bool:
    """Whether a block can only be called as a whole because torch wraps it, as FSDP does to gather its shards."""
    return type(layer).__module__.startswith("torch.")


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32 where autocast is on.

    In half precision different scores would round to the same number, and their order would be lost.
    """
    return tensor.float() if torch.is_autocast_enabled(tensor.device.type) else tensor


def _bidirectional_block(layer: nn.Module, hidden_states: Tensor) -> Tensor:
    out: Tensor = layer(hidden_states, None)
    return out


def _text_block(layer: nn.Module, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    out: Tensor = layer(hidden_states, mask, is_causal=True)
    return out


def _run(
    block: Callable[..., Tensor], layers: Iterable[nn.Module], hidden_states: Tensor, execution: Execution, *args: Any
) -> Tensor:
    # torch.compile specialises on size 1 and would compile again; a batch of one is cheap without it.
    if execution.compile and len(hidden_states) > 1:
        block = _compiled(block)
    for layer in layers:
        trained = hidden_states.requires_grad or any(p.requires_grad for p in layer.parameters())
        # Frozen blocks run without gradients in training too, so they are compiled for one mode only.
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            if execution.gradient_checkpointing and torch.is_grad_enabled():
                hidden_states = checkpoint(block, layer, hidden_states, *args, use_reentrant=False)
            else:
                hidden_states = block(layer, hidden_states, *args)
    return hidden_states


@cache
def _compiled(block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a block once for all layers of all models; equal layers share the compiled code.

    No module holds the compiled function, so copies, checkpoints and parameter names do not change. Sizes are
    symbolic, so a smaller last batch or longer labels do not compile again.
    """
    return torch.compile(block, dynamic=True)


@cache
def check_compiler(device: torch.device) -> None:
    """Check that `torch.compile` works on a device.

    Raises:
        UserError: It does not work. On a CPU the usual reason is a missing C++ compiler.
    """
    try:
        torch.compile(lambda x: 2 * x + 1)(torch.ones(2, device=device))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.compile: torch.compile does not work here ({reason}); "
            "install a C++ compiler (g++) and Python's headers, or leave model.compile off"
        ) from error
