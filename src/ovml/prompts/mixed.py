"""Texts in which trained vectors replace the embeddings of some tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ovml.encoders import TextEncoder, length_batches, pad_rows, restore_order
from ovml.encoders.prefix import shared_length


class MixedTokens(NamedTuple):
    """A batch of texts of similar length.

    Attributes:
        ids: Token ids `[N, T]`.
        rows: Index of the trained vector for each token `[N, T]`, or -1 for the token's own embedding.
        lengths: Number of tokens of each text `[N]`.
        num_shared: Number of leading tokens that all texts share.
    """

    ids: Tensor
    rows: Tensor
    lengths: Tensor
    num_shared: int


MixedBatches = tuple[list[MixedTokens], list[list[int]]]
"""Batches, and the positions of the texts in each batch."""


def mixed_batches(ids: Sequence[list[int]], rows: Sequence[list[int]], batch_size: int) -> MixedBatches:
    """Group texts into batches of similar length.

    Args:
        ids: Token ids of each text.
        rows: For each token, the index of the trained vector that replaces its embedding, or -1.
        batch_size: Number of texts per batch.
    """
    order = length_batches([len(row) for row in ids], batch_size)
    batches = [
        MixedTokens(
            pad_rows([ids[i] for i in batch]),
            pad_rows([rows[i] for i in batch], value=-1),
            torch.tensor([len(ids[i]) for i in batch]),
            # Tokens are shared only if both their ids and their trained vectors agree.
            shared_length([list(zip(ids[i], rows[i], strict=True)) for i in batch]),
        )
        for batch in order
    ]
    return batches, order


def embed_mixed(text_encoder: TextEncoder, mixed: MixedBatches, vectors: Tensor) -> Tensor:
    """Embed all texts in their original order; returns `[L, D]`.

    Args:
        text_encoder: The text tower.
        mixed: Output of `mixed_batches`.
        vectors: Trained vectors `[M, W]`.
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
