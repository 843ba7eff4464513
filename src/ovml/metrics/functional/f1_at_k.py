"""Precision, recall and F1 of the k best labels, pooled over a set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ovml.metrics.functional.inputs import check_inputs


class CountsAtK(NamedTuple):
    """Counts over images: true positives among the k best (one count for every k), all positives, images."""

    hits: Tensor
    positives: Tensor
    images: Tensor


def count_at_k(preds: Tensor, targets: Tensor, k: int | Sequence[int]) -> CountsAtK:
    """Count one batch.

    Args:
        preds: Scores `[B, L]`.
        targets: `[B, L]`: 1 present; absent and unknown labels are no hits.
        k: Labels taken per image; several share one top-k.

    Raises:
        ValueError: Shapes do not fit, a score is NaN, or there are fewer than `k` labels.
    """
    check_inputs(preds, targets)
    ks = [k] if isinstance(k, int) else list(k)
    if preds.shape[1] < max(ks):
        raise ValueError(f"k must not exceed the number of labels; got k={max(ks)} and {preds.shape[1]} labels")
    positive = targets == 1
    found = positive.gather(1, preds.topk(max(ks), dim=1).indices).sum(dim=0).cumsum(dim=0)
    hits = found[torch.tensor(ks, device=preds.device) - 1]
    return CountsAtK(
        hits[0] if isinstance(k, int) else hits, positive.sum(), torch.tensor(len(preds), device=preds.device)
    )


def precision_recall_f1(counts: CountsAtK, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """`hits / (images k)`, `hits / positives` and their harmonic mean; 0 where a denominator is 0.

    >>> counts = CountsAtK(*map(torch.tensor, (3, 6, 4)))
    >>> [round(float(x), 3) for x in precision_recall_f1(counts, k=3)]
    [0.25, 0.5, 0.333]
    """
    precision = counts.hits / (counts.images * k).clamp(min=1)
    recall = counts.hits / counts.positives.clamp(min=1)
    total = precision + recall
    return precision, recall, 2 * precision * recall / torch.where(total > 0, total, 1)
