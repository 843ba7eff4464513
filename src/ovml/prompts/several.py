"""Several embeddings of one label, of which the best counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


def stack_texts(embeds: Tensor, counts: Sequence[int]) -> Tensor:
    """Stack the texts of each label, `[L, K, D]`; a label with fewer than others repeats its first.

    Args:
        embeds: Of all texts, one label's after the other's, `[T, D]`.
        counts: Number of texts of each label, at least 1.

    >>> stack_texts(torch.tensor([[1.0], [2.0], [3.0]]), [1, 2]).squeeze(-1).tolist()
    [[1.0, 1.0], [2.0, 3.0]]
    """
    starts = [0, *accumulate(counts)]
    rows = [
        [start + (k if k < count else 0) for k in range(max(counts))]
        for start, count in zip(starts, counts, strict=False)
    ]
    return embeds[torch.tensor(rows, device=embeds.device)]


def distinct_texts(label_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Undo `stack_texts`: heads may compare labels with one another, so none is to stand twice.

    Args:
        label_embeds: `[L, K, D]`.

    Returns:
        Embeddings of all texts `[T, D]`, and which of them are each label's, `[L, K]`.

    >>> [part.tolist() for part in distinct_texts(torch.tensor([[[1.0], [1.0]], [[2.0], [3.0]]]))]
    [[[1.0], [2.0], [3.0]], [[0, 0], [1, 2]]]
    """
    kept = (label_embeds != label_embeds[:, :1]).any(dim=-1)
    kept[:, 0] = True
    number = kept.flatten().cumsum(dim=0).view_as(kept) - 1
    return label_embeds[kept], torch.where(kept, number, number[:, :1])
