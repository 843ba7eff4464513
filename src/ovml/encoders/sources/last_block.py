"""Sources that change the attention of the last block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ovml.encoders.sources.base import PatchSource, feed_forward, mix, self_similarity
from ovml.utils.errors import UserError


class PlainPatches(PatchSource):
    """The output of the last block, as it is.

    Example:
        >>> PlainPatches().patches([torch.zeros(1, 5, 8), torch.ones(1, 5, 8)], [None]).shape
        torch.Size([1, 4, 8])
    """

    def patches(self, states: Sequence[Tensor], layers: Sequence[Any]) -> Tensor:
        """Its patches."""
        return states[-1][:, 1:]


class MaskCLIP(PatchSource):
    """In the last block each token keeps its own value, as MaskCLIP's code does it.

    `z = MLP(h + W_o v + b_o)`, with the hidden states `h` that enter the block. TagCLIP's patches are the same.

    Example:
        >>> from ovml.encoders import ImageEncoder
        >>> from ovml.encoders.checkpoints import load_clip
        >>> encoder = ImageEncoder(load_clip("ovml-demo"), patch_source=MaskCLIP())
        >>> encoder(torch.zeros(1, 3, encoder.image_size, encoder.image_size)).patch_embeds.shape[0]
        1
    """

    def patches(self, states: Sequence[Tensor], layers: Sequence[Any]) -> Tensor:
        """The patches after the changed block."""
        before = states[-2][:, 1:]
        return feed_forward(layers[-1], before + mix(layers[-1], before, None))


class SCLIP(PatchSource):
    """In the last block tokens attend to those of similar query and of similar key, as SCLIP's code does it.

    `z = MLP(h + o(S_q + S_k))` with `S_x = softmax(x x^T / sqrt(d))`; the sum of both is not halved, as published.

    Example:
        >>> SCLIP().first_block(12)
        11
    """

    def patches(self, states: Sequence[Tensor], layers: Sequence[Any]) -> Tensor:
        """The patches after the changed block."""
        before, layer = states[-2], layers[-1]
        return feed_forward(layer, before + mix(layer, before, _similarity(layer, before)))[:, 1:]


class ITACLIP(PatchSource):
    """As `SCLIP`, with attention of earlier blocks and without the feed-forward layer, as ITACLIP's code does it.

    `z = h + o((S_q + S_k) / 2 + mean_i (S_q + S_k of block i) / 2)`. Image engineering and texts of that work are not
    part of the source.

    Args:
        blocks: The earlier blocks, counted from 1.

    Raises:
        UserError: A block is less than 1.

    Example:
        >>> ITACLIP().first_block(12)
        6
    """

    def __init__(self, blocks: Sequence[int] = (7, 8, 10)) -> None:
        if not blocks or min(blocks) < 1:
            raise UserError(f"ITACLIP: blocks are counted from 1; got {list(blocks)}")
        self.blocks = tuple(blocks)

    def first_block(self, num_layers: int) -> int:
        """The first of `blocks`.

        Raises:
            UserError: The tower has fewer blocks.
        """
        if max(self.blocks) > num_layers:
            raise UserError(f"ITACLIP: blocks must be from 1 to {num_layers}, the tower's; got {list(self.blocks)}")
        return min(*self.blocks, num_layers) - 1

    def patches(self, states: Sequence[Tensor], layers: Sequence[Any]) -> Tensor:
        """The patches after the changed block."""
        before, layer = states[-2], layers[-1]
        earlier = torch.stack([_similarity(layers[i - 1], states[i - 1]) for i in self.blocks]).mean(dim=0)
        return (before + mix(layer, before, (_similarity(layer, before) + earlier) / 2))[:, 1:]


def _similarity(layer: Any, hidden_states: Tensor) -> Tensor:
    return self_similarity(layer, hidden_states, "q") + self_similarity(layer, hidden_states, "k")
