"""Precision, recall and F1 at k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ovml.metrics.functional.f1_at_k import CountsAtK, count_at_k, precision_recall_f1
from ovml.utils.errors import UserError


class PrecisionRecallF1AtK(Metric):
    """Precision, recall and F1 of the `k` best labels of every image, pooled over the whole set ("overall").

    `P@k = hits / (images k)`, `R@k = hits / positives`, `F1@k` is their harmonic mean (the protocol of NUS-WIDE and
    Open Images in the zero-shot literature). Only counts are kept.

    Args:
        k: Labels taken per image; several may be given.
        kwargs: See `torchmetrics.Metric`.

    Example:
        >>> metric = PrecisionRecallF1AtK(k=1)
        >>> metric(torch.tensor([[0.9, 0.1]]), torch.tensor([[1, 1]]))
        {'P@1': tensor(1.), 'R@1': tensor(0.5000), 'F1@1': tensor(0.6667)}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    hits: Tensor
    positives: Tensor
    images: Tensor

    def __init__(self, k: int | Sequence[int] = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ks = (k,) if isinstance(k, int) else tuple(k)
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"k must be at least 1; got {k}")
        self.add_state("hits", default=torch.zeros(len(self.ks), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("positives", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("images", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, targets: Tensor) -> None:
        """Add scores `[B, L]` and targets `[B, L]`."""
        counts = count_at_k(preds, targets, self.ks)
        # Not in place: a reset in inference mode leaves tensors that cannot be written to outside of it.
        self.hits = self.hits + counts.hits
        self.positives = self.positives + counts.positives
        self.images = self.images + counts.images

    def compute(self) -> dict[str, Tensor]:
        """Return three values by name for every k."""
        values: dict[str, Tensor] = {}
        for k, hits in zip(self.ks, self.hits, strict=True):
            three = precision_recall_f1(CountsAtK(hits, self.positives, self.images), k)
            values |= dict(zip((f"P@{k}", f"R@{k}", f"F1@{k}"), three, strict=True))
        return values
