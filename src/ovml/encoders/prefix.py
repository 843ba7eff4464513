"""Texts that begin alike: a causal tower gives the tokens they share the same states, so these are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def shared_length(rows: Sequence[Sequence[Any]]) -> int:
    """How many tokens all rows begin with; of each row at least the last one stays its own.

    >>> shared_length([[9, 1, 2, 5, 8], [9, 1, 2, 6, 7, 8]]), shared_length([[9, 1], [9, 1]])
    (3, 1)
    """
    shortest = min(len(row) for row in rows) - 1
    first = rows[0]
    return next((i for i in range(shortest) if any(row[i] != first[i] for row in rows)), shortest)


def pack(hidden_states: Tensor, num_shared: int) -> Tensor:
    """Put the shared tokens of `[N, T, W]`, taken from the first row, before all rows' own: `[S + N (T - S), W]`."""
    return torch.cat([hidden_states[0, :num_shared], hidden_states[:, num_shared:].flatten(0, 1)])


def unpack(packed: Tensor, num_shared: int, num_texts: int) -> Tensor:
    """The rows' own tokens `[N, T - S, W]` of what `pack` gave."""
    return packed[num_shared:].reshape(num_texts, -1, packed.shape[-1])


def packed_block(layer: nn.Module, packed: Tensor, num_shared: int, num_texts: int) -> Tensor:
    """A block of CLIP's text tower on packed tokens.

    The shared tokens attend to each other; each row's own to the shared ones and to themselves.

    Args:
        layer: A `CLIPEncoderLayer`.
        packed: What `pack` gave, `[S + N (T - S), W]`.
        num_shared: `S`.
        num_texts: `N`.
    """
    attention: Any = layer.self_attn
    dropout = attention.dropout if attention.training else 0.0
    normed = layer.layer_norm1(packed)  # type: ignore[operator]
    # Queries, keys and values by head: of the shared tokens [1, H, S, d], of the rows' own [N, H, R, d].
    (query, key, value), (own_query, own_key, own_value) = zip(
        *(
            _heads(projection(normed), num_shared, num_texts, attention.head_dim)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        ),
        strict=True,
    )
    of_shared = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    keys, values = (
        torch.cat([before.expand(num_texts, -1, -1, -1), after], dim=2)
        for before, after in ((key, own_key), (value, own_value))
    )
    visible = torch.ones(own_query.shape[2], keys.shape[2], dtype=torch.bool, device=packed.device).tril(num_shared)
    of_own = F.scaled_dot_product_attention(own_query, keys, values, visible, dropout_p=dropout)
    attended = torch.cat([of_shared.squeeze(0).transpose(0, 1), of_own.transpose(1, 2).flatten(0, 1)])
    packed = packed + attention.out_proj(attended.flatten(1))
    out: Tensor = packed + layer.mlp(layer.layer_norm2(packed))  # type: ignore[operator]
    return out


def _heads(packed: Tensor, num_shared: int, num_texts: int, head_dim: int) -> tuple[Tensor, Tensor]:
    heads = packed.view(len(packed), -1, head_dim)  # [M, H, d]
    own = heads[num_shared:].view(num_texts, -1, *heads.shape[1:]).transpose(1, 2)
    return heads[:num_shared].transpose(0, 1).unsqueeze(0), own
