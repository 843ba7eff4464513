"""Frozen blocks whose weights are held in the type of mixed precision, instead of being converted at every step."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

KEY = "_held"
"""Attribute of a block, beside its parameters and modules: no state dict, optimizer or device move sees it."""


class HeldBlock:
    """A second form of a frozen block, whose linear layers have weights of half precision; the rest is shared.

    Under autocast it gives bit for bit what the block gives.

    Args:
        block: A frozen block of a tower.
        dtype: The type of autocast.
    """

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.block = _converted(block, dtype)
        self._parameters = tuple(block.parameters())
        self._versions = self._state()

    def serves(self) -> bool:
        """Whether it can run in the block's place: under autocast of its type, with weights that did not change."""
        device = self._parameters[0].device.type
        if not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) != self.dtype:
            return False
        return self._state() == self._versions

    def _state(self) -> tuple[tuple[bool, int, int], ...]:
        return tuple((p.requires_grad, p._version, p.data_ptr()) for p in self._parameters)


def hold_frozen(blocks: Iterable[nn.Module], dtype: torch.dtype | None) -> None:
    """Hold the weights of frozen blocks in a type; `None` lets go of those that are held.

    Blocks with adapters are left alone.
    """
    for block in blocks:
        vars(block).pop(KEY, None)
        parameters = list(block.parameters())
        if dtype is None or not parameters or any(p.requires_grad for p in parameters):
            continue
        if all(type(module).__module__.partition(".")[0] in ("torch", "transformers") for module in block.modules()):
            vars(block)[KEY] = HeldBlock(block, dtype)


def running_form(block: nn.Module) -> nn.Module:
    """The form in which a block runs: the held one where it serves."""
    held: HeldBlock | None = vars(block).get(KEY)
    if held is None or not held.serves():
        return block
    if held.block.training != block.training:
        held.block.train(block.training)
    return held.block


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module with linear layers of another type; modules without any are shared."""
    if type(module) is nn.Linear:
        linear = copy.copy(module)
        linear._parameters = {
            name: None if p is None else nn.Parameter(p.detach().to(dtype), requires_grad=False)
            for name, p in module._parameters.items()
        }
        return linear
    if not any(type(inner) is nn.Linear for inner in module.modules()):
        return module
    converted = copy.copy(module)
    converted._modules = {
        name: None if inner is None else _converted(inner, dtype) for name, inner in module._modules.items()
    }
    vars(converted).pop(KEY, None)
    return converted
