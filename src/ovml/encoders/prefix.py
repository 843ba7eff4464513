"""Shared prefixes of texts: in a causal tower, tokens that all texts start with are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def shared_length(rows: Sequence[Sequence[Any]]) -> int:
    """Count the leading tokens that all rows share. The last token of a row never counts as shared.

    >>> shared_length([[9, 1, 2, 5, 8], [9, 1, 2, 6, 7, 8]]), shared_length([[9, 1], [9, 1]])
    (3, 1)
    """
    shortest = min(len(row) for row in rows) - 1
    first = rows[0]
    return next((i for i in range(shortest) if any(row[i] != first[i] for row in rows)), shortest)


def pack(hidden_states: Tensor, num_shared: int) -> Tensor:
    """Pack `[N, T, W]` to `[S + N (T - S), W]`: the `S` shared tokens once, then the own tokens of all rows."""
    return torch.cat([hidden_states[0, :num_shared], hidden_states[:, num_shared:].flatten(0, 1)])


def unpack(packed: Tensor, num_shared: int, num_texts: int) -> Tensor:
    """Return the own tokens `[N, T - S, W]` of packed rows."""
    return packed[num_shared:].reshape(num_texts, -1, packed.shape[-1])


def visible_tokens(hidden_states: Tensor, num_shared: int, num_added: int = 0) -> Tensor:
    """Mask `[T - S, T + m]` of the tokens that each of a row's own tokens attends to: those before it and itself.

    Args:
        hidden_states: `[N, T, W]`.
        num_shared: Number of shared tokens, `S`.
        num_added: Number of tokens that a block adds to the shared ones, `m`.
    """
    own, shared = hidden_states.shape[1] - num_shared, num_shared + num_added
    return torch.ones(own, shared + own, dtype=torch.bool, device=hidden_states.device).tril(shared)


def packed_block(layer: nn.Module, packed: Tensor, num_shared: int, num_texts: int, visible: Tensor) -> Tensor:
    """Run a block of CLIP's text tower on packed tokens.

    Shared tokens attend to each other; the own tokens of a row attend to the shared tokens and to each other.

    Args:
        layer: A `CLIPEncoderLayer`.
        packed: Output of `pack`, `[S + N (T - S), W]`.
        num_shared: Number of shared tokens, `S`.
        num_texts: Number of rows, `N`.
        visible: See `visible_tokens`.
    """
    attention: Any = layer.self_attn
    dropout = attention.dropout if attention.training else 0.0
    normed = layer.layer_norm1(packed)  # type: ignore[operator]
    # Queries, keys and values by head: shared tokens [1, H, S, d], own tokens [N, H, R, d].
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
    of_own = F.scaled_dot_product_attention(own_query, keys, values, visible, dropout_p=dropout)
    attended = torch.cat([of_shared.squeeze(0).transpose(0, 1), of_own.transpose(1, 2).flatten(0, 1)])
    packed = packed + attention.out_proj(attended.flatten(1))
    out: Tensor = packed + layer.mlp(layer.layer_norm2(packed))  # type: ignore[operator]
    return out


def deep_packed_block(
    layer: nn.Module, packed: Tensor, num_shared: int, num_texts: int, visible: Tensor, tokens: Tensor
) -> Tensor:
    """Run a block on packed tokens and tokens `[m, W]` of its own, which all rows share.

    They stand behind the first token and are taken out again; other arguments are those of `packed_block`.
    """
    longer = torch.cat([packed[:1], tokens.to(packed.dtype), packed[1:]])
    out = packed_block(layer, longer, num_shared + len(tokens), num_texts, visible)
    return torch.cat([out[:1], out[1 + len(tokens) :]])


def _heads(packed: Tensor, num_shared: int, num_texts: int, head_dim: int) -> tuple[Tensor, Tensor]:
    heads = packed.view(len(packed), -1, head_dim)  # [M, H, d]
    own = heads[num_shared:].view(num_texts, -1, *heads.shape[1:]).transpose(1, 2)
    return heads[:num_shared].transpose(0, 1).unsqueeze(0), own
