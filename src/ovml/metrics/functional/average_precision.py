"""Exact average precision per label."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ovml.metrics.functional.each_label import Array, KeptScores, each_label
from ovml.metrics.functional.inputs import check_inputs, known_targets
from ovml.metrics.processes import Processes


def average_precision(preds: Tensor, targets: Tensor, ignore_index: int = -1) -> Tensor:
    """Average precision of every label over images, as scikit-learn defines it: tied scores are one threshold.

    Args:
        preds: Scores `[N, L]` of any float type.
        targets: `[N, L]`: 1 present, 0 absent, `ignore_index` left out.
        ignore_index: Target of unknown entries.

    Returns:
        `[L]` in 0..1; NaN for a label without positives.

    Raises:
        ValueError: Shapes do not fit, or a score is NaN.

    Example:
        >>> import torch
        >>> average_precision(torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor([[1], [0], [1]]))
        tensor([0.8333])
    """
    check_inputs(preds, targets)
    kept = KeptScores([preds], [known_targets(targets, ignore_index)])
    alone = Processes(preds.device, together=False)
    return each_label([label_average_precision], kept, preds.shape[1], alone)[0].to(preds.device)


def label_average_precision(scores: Array, positive: Array) -> float:
    """Average precision of one label over the images `[N]` where its target is known.

    Only the precision at positives counts: (positives with at least this score) / (images with at least this score),
    two counts in sorted arrays.

    >>> round(label_average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True])), 4)
    0.8333
    """
    thresholds = np.sort(scores[positive])
    if len(thresholds) == 0:
        return float("nan")
    hits = len(thresholds) - np.searchsorted(thresholds, thresholds)
    images = len(scores) - np.searchsorted(np.sort(scores), thresholds)
    return float(np.mean(hits / images))


def number_known(scores: Array, positive: Array) -> float:
    """The number of images `[N]` where the target of a label is known.

    >>> number_known(np.array([0.9, 0.8]), np.array([True, False]))
    2.0
    """
    return float(len(scores))
