"""What all metrics check of scores and targets."""

from __future__ import annotations

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
