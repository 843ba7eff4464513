"""How the towers run their blocks: plain, compiled, or with gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovml.encoders.held import running_form
from ovml.utils.errors import UserError, all_lines


@dataclass(frozen=True)
class Execution:
    """How a tower's blocks run. The options change results only in the last digits of float32.

    Attributes:
        compile: Run the blocks through `torch.compile`.
        gradient_checkpointing: Keep only the input of each trained block and recompute the rest in the backward pass.
    """

    compile: bool = False
    gradient_checkpointing: bool = False

    def run(
        self, block: Callable[..., Tensor], layers: Iterable[nn.Module], hidden_states: Tensor, *args: Any
    ) -> Tensor:
        """Run hidden states through blocks.

        Args:
            block: Calls one block: `(layer, hidden_states, *args) -> hidden_states`, a function of a module, because
                compiled code is kept per function.
            layers: The blocks.
            hidden_states: Input of the first block.
            args: Other arguments of `block`.
        """
        # torch.compile specialises on size 1 and would compile again; a batch of one is cheap without it.
        if self.compile and len(hidden_states) > 1:
            block = _compiled(block)
        for layer in layers:
            # Frozen blocks run without gradients in training too, so they are compiled for one mode only.
            with torch.set_grad_enabled(torch.is_grad_enabled() and _learns(layer, hidden_states, *args)):
                form = running_form(layer)
                if self.gradient_checkpointing and torch.is_grad_enabled():
                    hidden_states = checkpoint(block, form, hidden_states, *args, use_reentrant=False)
                else:
                    hidden_states = block(form, hidden_states, *args)
        return hidden_states


def _learns(layer: nn.Module, *inputs: Any) -> bool:
    """Whether a gradient flows through a block; its parameters are looked at only if none of its inputs has one."""
    if any(x.requires_grad for x in inputs if isinstance(x, Tensor)):
        return True
    return any(parameter.requires_grad for parameter in layer.parameters())


def bidirectional_block(layer: nn.Module, hidden_states: Tensor) -> Tensor:
    """Run a block with bidirectional attention, of a vision tower or SigLIP's text tower, on `[B, T, W]`."""
    out: Tensor = layer(hidden_states, None)
    return out


def causal_block(layer: nn.Module, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """Run a block of CLIP's text tower on `[N, T, W]`; `mask` is `None` with SDPA."""
    out: Tensor = layer(hidden_states, mask, is_causal=True)
    return out


def deep_causal_block(
    layer: nn.Module, hidden_states: Tensor, mask: Tensor | None, tokens: Tensor, most: int
) -> Tensor:
    """Run a block of CLIP's text tower on `[N, T, W]` with tokens of its own.

    The tokens stand behind the start token and are taken out again. What they push beyond `most` skips the block.

    Args:
        layer: A `CLIPEncoderLayer`.
        hidden_states: `[N, T, W]`.
        mask: Of `min(T + m, most)` tokens; `None` with SDPA.
        tokens: `[m, W]`.
        most: Number of tokens that the block takes.
    """
    room = most - len(tokens)
    own, pushed_out = hidden_states[:, :room], hidden_states[:, room:]
    inserted = tokens.to(own.dtype).expand(len(own), -1, -1)
    out = causal_block(layer, torch.cat([own[:, :1], inserted, own[:, 1:]], dim=1), mask)
    return torch.cat([out[:, :1], out[:, 1 + len(tokens) :], pushed_out], dim=1)


def is_whole(layer: nn.Module) -> bool:
    """Whether a block can only be called as a whole because torch wraps it, as FSDP does to gather its shards."""
    return type(layer).__module__.startswith("torch.")


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
        reason = all_lines(error)[:200]
        raise UserError(
            f"model.compile: torch.compile does not work here ({reason}); "
            "install a C++ compiler (g++) and Python's headers, or leave model.compile off"
        ) from error
