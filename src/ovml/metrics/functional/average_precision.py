"""Exact average precision per label."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 22  # scores sorted at once: some 100 MB of work space


def average_precision(preds: Tensor, targets: Tensor, ignore_index: int = -1) -> Tensor:
    """Average precision of every label over images, as scikit-learn defines it: tied scores are one threshold.

    Works through the labels block by block, so that no second copy of the scores is made.

    Args:
        preds: Scores `[N, L]` of any float type.
        targets: `[N, L]`: 1 present, 0 absent, `ignore_index` left out.
        ignore_index: Mark of unknown entries.

    Returns:
        `[L]` in 0..1; NaN for a label without positives.

    Raises:
        ValueError: Shapes do not fit.

    Example:
        >>> average_precision(torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor([[1], [0], [1]]))
        tensor([0.8333])
    """
    if preds.ndim != 2 or preds.shape != targets.shape:
        raise ValueError(f"preds and targets must both be [N, L]; got {list(preds.shape)} and {list(targets.shape)}")
    num_images, num_labels = preds.shape
    if num_images == 0 or num_labels == 0:
        return torch.full((num_labels,), torch.nan, device=preds.device)
    step = max(1, BLOCK // num_images)
    blocks = [
        _block(preds[:, start : start + step], targets[:, start : start + step], ignore_index)
        for start in range(0, num_labels, step)
    ]
    return torch.cat(blocks)


def _block(preds: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    # Labels along the rows: sorting the last dimension is the fast way.
    ordered, order = preds.T.contiguous().sort(dim=1, descending=True)
    marks = targets.T.gather(1, order)
    positive = marks == 1
    hits = positive.cumsum(dim=1, dtype=torch.int32)
    known = (marks != ignore_index).cumsum(dim=1, dtype=torch.int32)
    precision = hits / known.clamp(min=1)
    # A positive counts with the precision at the end of its group of ties.
    position = torch.arange(ordered.shape[1], device=ordered.device)
    last = torch.ones_like(positive)
    last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    end = torch.where(last, position, len(position)).flip(1).cummin(dim=1).values.flip(1)
    total = torch.where(positive, precision.gather(1, end), 0).sum(dim=1, dtype=torch.float64)
    count = hits[:, -1]
    return torch.where(count > 0, total / count, torch.nan).float()
