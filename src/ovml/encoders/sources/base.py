"""The base class of patch sources, and the two steps that they are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.utils.parts import Part


class PatchSource(Part, ABC):
    """Makes patch embeddings of what the blocks of a frozen tower computed; it has no weights of its own.

    A tower's last block is trained to gather the image into the class token, and its patches say little of what is
    where. A source reads hidden states and combines them in another way. The global embedding stays the tower's own.

    Example:
        >>> class BeforeLast(PatchSource):
        ...     def patches(self, states, layers):
        ...         return states[-2][:, 1:]
        >>> BeforeLast().patches([torch.zeros(2, 5, 8), torch.ones(2, 5, 8)], [None]).shape
        torch.Size([2, 4, 8])
    """

    def first_block(self, num_layers: int) -> int:
        """The first block, counted from 0, whose input the source reads. Default: the last block."""
        return num_layers - 1

    @abstractmethod
    def patches(self, states: Sequence[Tensor], layers: Sequence[Any]) -> Tensor:
        """Hidden states `[B, P, W]` of the patches, before post-layernorm and projection.

        Args:
            states: The input of each block, then the output of the last one, `[B, 1+P, W]` each.
            layers: The blocks, one fewer than the states.
        """


def mix(layer: Any, hidden_states: Tensor, weights: Tensor | None) -> Tensor:
    """Attention of a block with given weights: `W_o concat(A v) + b_o`.

    Args:
        layer: The block.
        hidden_states: Its input `[B, T, W]`.
        weights: `A`, `[B, heads, T, T]` or `[B, 1, T, T]`; `None` for the identity, where each token keeps its value.

    Returns:
        `[B, T, W]`.
    """
    attention = layer.self_attn
    values = attention.v_proj(layer.layer_norm1(hidden_states))
    if weights is not None:
        heads = values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        values = (weights @ heads).transpose(1, 2).flatten(2)
    mixed: Tensor = attention.out_proj(values)
    return mixed


def self_similarity(layer: Any, hidden_states: Tensor, of: Literal["q", "k", "v"]) -> Tensor:
    """Attention weights of queries with queries, keys with keys or values with values: `softmax(x x^T / sqrt(d))`.

    Args:
        layer: The block.
        hidden_states: Its input `[B, T, W]`.
        of: Which of the three.

    Returns:
        `[B, heads, T, T]`.
    """
    attention = layer.self_attn
    projection = getattr(attention, f"{of}_proj")
    x = projection(layer.layer_norm1(hidden_states)).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    return torch.softmax(x @ x.transpose(-1, -2) * attention.scale, dim=-1)


def attend_by_values(block: Any, hidden_states: Tensor) -> Tensor:
    """Value-value attention in a block of CLIP's tower.

    Args:
        block: A `CLIPEncoderLayer`.
        hidden_states: Its input `[B, 1+P, W]`, the class token first.

    Returns:
        `[B, P, W]`: the patches attend to all tokens.
    """
    attention = block.self_attn
    values = attention.v_proj(block.layer_norm1(hidden_states))
    values = values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(values[:, :, 1:], values, values, scale=attention.scale)
    attended: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return attended


def feed_forward(layer: Any, hidden_states: Tensor) -> Tensor:
    """The second half of a block, with its residual."""
    out: Tensor = hidden_states + layer.mlp(layer.layer_norm2(hidden_states))
    return out
