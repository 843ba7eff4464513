"""CLIP Surgery's patches: a second path beside the last blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ovml.encoders.sources.base import PatchSource, attend_by_values
from ovml.utils.errors import check_whole


class CLIPSurgery(PatchSource):
    """A path beside the last blocks that adds value-value attention alone, as CLIP Surgery's code does it.

    `z = h_{N-num_blocks} + sum_i o_i(S_v)` over the last blocks, `S_v` from what enters each. It is the path that
    RAM's ladder runs over, without adapters.

    Args:
        num_blocks: Number of last blocks.

    Raises:
        UserError: `num_blocks` is less than 1.

    Example:
        >>> CLIPSurgery().first_block(12)
        6
    """

    def __init__(self, num_blocks: int = 6) -> None:
        check_whole(self, 1, num_blocks=num_blocks)
        self.num_blocks = num_blocks

    def first_block(self, num_layers: int) -> int:
        """The first of the last blocks; all blocks of a shorter tower."""
        return max(0, num_layers - self.num_blocks)

    def patches(self, states: Sequence[Tensor], layers: Sequence[Any]) -> Tensor:
        """The end of the path."""
        first = self.first_block(len(layers))
        path = states[first][:, 1:]
        for layer, entering in zip(layers[first:], states[first:-1], strict=True):
            path = path + attend_by_values(layer, entering)
        return path
