"""Tensors of any floating-point type."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ovml.utils.errors import UserError


def full_precision(tensor: Tensor, least: torch.dtype = torch.float32) -> Tensor:
    """The tensor in a type that holds both its own values and those of `least`; one of integers as it is.

    In half precision different scores would round to the same number, and their order would be lost.

    >>> full_precision(torch.ones(1, dtype=torch.bfloat16)).dtype, full_precision(torch.ones(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return tensor.to(torch.promote_types(tensor.dtype, least)) if tensor.is_floating_point() else tensor


def through_float16(tensor: Tensor) -> Tensor:
    """The tensor rounded to float16, in its own type; its gradient is rounded too.

    >>> through_float16(torch.tensor([1.0003, 1e-9])).tolist()
    [1.0, 0.0]
    """
    return tensor.half().to(tensor.dtype)


def check_scores(scores: Tensor) -> None:
    """Check that scores `[N, L]` can be ranked.

    Raises:
        UserError: One is NaN.
    """
    if (unranked := scores.isnan()).any():
        row, column = unranked.nonzero()[0].tolist()
        raise UserError(
            f"scores: NaN for image {row} of the batch and label {column} ({int(unranked.sum()):,} in all); the "
            "weights are damaged or the training diverged: take an earlier checkpoint, or train with a lower lr"
        )


def digest(text: str, *states: Mapping[str, Tensor], length: int = 16) -> str:
    """A digest of a text and of state dicts: names, types, shapes and values.

    Args:
        text: Any text.
        states: Tensors by name.
        length: Characters of the digest, hexadecimal, at most 64.

    >>> digest("a", {"w": torch.tensor(1.0)}) == digest("a", {"w": torch.tensor(1.5)})
    False
    """
    found = hashlib.sha256(text.encode())
    for state in states:
        for name, value in sorted(state.items()):
            found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:length]
