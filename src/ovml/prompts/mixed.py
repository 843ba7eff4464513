"""Tokens of which some are learned vectors and the others stand for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ovml.encoders import TextEncoder, length_batches, pad_rows, restore_order
from ovml.encoders.prefix import shared_length


class MixedTokens(NamedTuple):
    """Texts of similar length.

    Attributes:
        ids: Token ids `[N, T]`.
        rows: Row of the learned vectors `[N, T]`, or -1 where a token's own embedding stands.
        lengths: Tokens of each text `[N]`.
        num_shared: Tokens that all of them begin with.
    """

    ids: Tensor
    rows: Tensor
    lengths: Tensor
    num_shared: int


MixedBatches = tuple[list[MixedTokens], list[list[int]]]
"""Batches, and which texts are in each."""


def mixed_batches(ids: Sequence[list[int]], rows: Sequence[list[int]], batch_size: int) -> MixedBatches:
    """Batches of similar length.

    Args:
        ids: Token ids of each text.
        rows: As long: the learned vector that stands for each token, or -1.
        batch_size: Texts of a batch.
    """
    order = length_batches([len(row) for row in ids], batch_size)
    batches = [
        MixedTokens(
            pad_rows([ids[i] for i in batch]),
            pad_rows([rows[i] for i in batch], value=-1),
            torch.tensor([len(ids[i]) for i in batch]),
            # Of a token both count: which it is, and whether a learned vector stands for it.
            shared_length([list(zip(ids[i], rows[i], strict=True)) for i in batch]),
        )
        for batch in order
    ]
    return batches, order


def embed_mixed(text_encoder: TextEncoder, mixed: MixedBatches, vectors: Tensor) -> Tensor:
    """Embeddings `[L, D]` of all texts, in their first order.

    Args:
        text_encoder: The tower.
        mixed: What `mixed_batches` gave.
        vectors: The learned vectors `[M, W]`.
    """
    batches, order = mixed
    embeds = []
    for batch in batches:
        ids, rows, lengths = (t.to(vectors.device) for t in (batch.ids, batch.rows, batch.lengths))
        original = text_encoder.token_embedding(ids)
        learned = vectors[rows.clamp(min=0)].to(original.dtype)
        token_embeds = torch.where((rows >= 0).unsqueeze(-1), learned, original)
        embeds.append(text_encoder.encode(token_embeds, lengths, batch.num_shared))
    return restore_order(embeds, order)
