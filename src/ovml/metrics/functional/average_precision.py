"""Exact average precision per label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovml.metrics.functional.inputs import check_inputs
from ovml.utils.tensors import full_precision

BLOCK = 1 << 20
"""Scores that a thread works on at once: some ten MB of work space."""

Array = np.ndarray[Any, Any]
OfLabel = Callable[[Array, Array], float]
"""From one label's known scores `[N]` and whether each is present `[N]` to a number."""


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
        >>> average_precision(torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor([[1], [0], [1]]))
        tensor([0.8333])
    """
    check_inputs(preds, targets)
    return each_label_of_pieces(label_average_precision, [preds], [targets], ignore_index)


def each_label_of_pieces(
    of_label: OfLabel, preds: Sequence[Tensor], targets: Sequence[Tensor], ignore_index: int = -1
) -> Tensor:
    """A number for every label, of pieces `[N_i, L]` that are never joined: block by block, without a second copy.

    Args:
        of_label: Computes a label's number.
        preds: Scores, at least one piece.
        targets: As many pieces of the same shapes.
        ignore_index: Target of unknown entries.
    """
    num_images, num_labels = sum(map(len, preds)), preds[0].shape[1]
    step = max(1, BLOCK // max(1, num_images))

    def block(start: int) -> list[float]:
        columns = slice(start, start + step)
        # Rows of labels, which are contiguous in memory.
        joined = (torch.cat([piece[:, columns] for piece in pieces]).T for pieces in (preds, targets))
        scores, found = (_numpy(values.contiguous()) for values in joined)
        return [of_label(*_known(row, own, ignore_index)) for row, own in zip(scores, found, strict=True)]

    # NumPy sorts without holding Python's lock.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        blocks = pool.map(block, range(0, num_labels, step))
        values = [value for part in blocks for value in part]
    return torch.tensor(values, device=preds[0].device)


def each_label_of_entries(
    of_label: OfLabel, preds: Tensor, labels: Tensor, positive: Tensor, num_labels: int
) -> Tensor:
    """A number for every label, of single entries: what is kept of batches with mostly unknown targets.

    Args:
        of_label: Computes a label's number.
        preds: Scores `[K]`.
        labels: Label of each `[K]`.
        positive: Whether it is present, else absent `[K]`.
        num_labels: `L`.

    Example:
        >>> scores, labels, positive = torch.tensor([[0.9, 0.8, 0.7], [1, 1, 1], [1, 0, 1]])
        >>> each_label_of_entries(label_average_precision, scores, labels.int(), positive > 0, num_labels=2)
        tensor([   nan, 0.8333])
    """
    order = torch.argsort(labels, stable=True)
    ends = torch.bincount(labels, minlength=num_labels).cumsum(0).cpu().numpy()[:-1]
    scores, found = (np.split(_numpy(values[order]), ends) for values in (preds, positive))
    values = [of_label(*pair) for pair in zip(scores, found, strict=True)] if num_labels else []
    return torch.tensor(values, device=preds.device)


def label_average_precision(scores: Array, positive: Array) -> float:
    """Average precision of one label over the images `[N]` where its target is known.

    Only the precision at positives counts: (positives with at least this score) / (images with at least this score),
    two counts in sorted arrays.
    """
    thresholds = np.sort(scores[positive])
    if len(thresholds) == 0:
        return float("nan")
    hits = len(thresholds) - np.searchsorted(thresholds, thresholds)
    images = len(scores) - np.searchsorted(np.sort(scores), thresholds)
    return float(np.mean(hits / images))


def _known(scores: Array, targets: Array, ignore_index: int) -> tuple[Array, Array]:
    known = targets != ignore_index
    return (scores, targets == 1) if known.all() else (scores[known], targets[known] == 1)


def _numpy(values: Tensor) -> Array:
    array: Array = full_precision(values).cpu().numpy()  # NumPy has no bfloat16
    return array
