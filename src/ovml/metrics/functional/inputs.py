"""What all metrics check of scores and targets."""

from __future__ import annotations

import torch
from torch import Tensor

from ovml.utils.tensors import check_scores


def check_inputs(preds: Tensor, targets: Tensor) -> None:
    """Check scores and targets of a metric.

    Args:
        preds: Scores `[N, L]`.
        targets: `[N, L]`.

    Raises:
        ValueError: Shapes do not fit.
        UserError: A score is NaN.
    """
    if preds.ndim != 2 or preds.shape != targets.shape:
        raise ValueError(f"preds and targets must both be [N, L]; got {list(preds.shape)} and {list(targets.shape)}")
    check_scores(preds)


def known_targets(targets: Tensor, ignore_index: int = -1) -> Tensor:
    """Targets of one byte each: 1 present, 0 absent, -1 unknown.

    Args:
        targets: Of any shape and type; whatever is neither 1 nor `ignore_index` is absent.
        ignore_index: Target of unknown entries.
    """
    return (targets == 1).to(torch.int8).masked_fill(targets == ignore_index, -1)
