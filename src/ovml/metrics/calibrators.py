"""Calibrators: fit a calibration to the scores of a validation, and evaluate it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.metrics.average_precision import MultilabelMeanAveragePrecision
from ovml.metrics.calibration import Calibration
from ovml.metrics.functional.each_label import Array, OfLabel
from ovml.utils.errors import check_positive
from ovml.utils.parts import Part
from ovml.vocabulary import LabelVocabulary

BINS = 1 << 16
"""Of scores in a fit: far finer than the fitted curve needs."""
RELIABILITY_BINS = 15


class Calibrator(Part, ABC):
    """Fits a `Calibration` to the scores of a validation. Subclass it and write `fit`.

    Args:
        thresholds: `global`: one for all labels. `per-label`: for each label the one with the highest F1, where it has
            enough present annotations.
        min_present: Present annotations that a label needs for a threshold of its own.

    Raises:
        UserError: `thresholds` or `min_present` is out of range.

    Example:
        >>> class Identity(Calibrator):
        ...     def fit(self, logits, absent, present):
        ...         return 1.0, 0.0
    """

    def __init__(self, thresholds: Literal["global", "per-label"] = "global", min_present: int = 10) -> None:
        check_positive(self, min_present=min_present)
        self.thresholds = thresholds
        self.min_present = min_present

    @cached_property
    def of_label(self) -> OfLabel | None:
        """What computes the minimum score of one label; `None` where all labels share one."""
        return partial(best_f1_score, min_present=self.min_present) if self.thresholds == "per-label" else None

    @abstractmethod
    def fit(self, logits: Array, absent: Array, present: Array) -> tuple[float, float]:
        """Slope and offset of the curve.

        Args:
            logits: Scores `[N]`.
            absent: Number of absent annotations with each score `[N]`.
            present: Number of present annotations with each score `[N]`.
        """

    def calibrate(self, metric: MultilabelMeanAveragePrecision, vocabulary: LabelVocabulary) -> Calibration | None:
        """Fit a calibration to the scores that a metric keeps; `None` where no target, or every target, is present.

        All processes must call it, and get the same.

        Args:
            metric: Updated with all images.
            vocabulary: The labels of its columns.
        """
        counts = metric.score_counts(BINS)
        absent, present = counts.counts[0]
        filled = absent + present > 0
        if not absent.any() or not present.any():
            return None
        edges = counts.edges
        slope, offset = self.fit(((edges[:-1] + edges[1:]) / 2)[filled], absent[filled], present[filled])
        slope = max(slope, 0.0)
        precision, recall, lower = counts.precision_recall()
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = torch.tensor([lower[f1[:-1].argmax()]])
        curve = Calibration(slope, offset, 0.0, vocabulary)
        threshold, own = float(curve.probabilities(best)), None
        if self.of_label is not None:
            (of_label,) = metric.each_label([self.of_label])
            own = tuple(curve.probabilities(of_label).nan_to_num(threshold).tolist())
        return replace(curve, threshold=threshold, label_thresholds=own)


class PlattScaling(Calibrator):
    """Fits `p = sigmoid(slope * logit + offset)` by maximum likelihood (Platt, 1999) over all known annotations.

    As in Platt's paper, the targets are `(P + 1) / (P + 2)` for the `P` present annotations and `1 / (A + 2)` for the
    `A` absent ones, so that the curve stays finite where the scores separate them.

    Example:
        >>> import numpy as np
        >>> logits, ones = np.array([0.0, 1.0]), np.array([1, 1])
        >>> slope, offset = PlattScaling().fit(logits, absent=3 * ones, present=np.array([1, 9]))
        >>> bool(slope > 0)
        True
    """

    def fit(self, logits: Array, absent: Array, present: Array) -> tuple[float, float]:
        """Slope and offset."""
        return _logistic_fit(logits, absent, present, with_offset=True)


class TemperatureScaling(Calibrator):
    """Fits `p = sigmoid(logit / temperature)`, for heads whose logit is 0 at a probability of one half.

    It suits heads trained with binary cross-entropy (Guo et al., ICML 2017), not those trained with ranking losses.

    Example:
        >>> import numpy as np
        >>> slope, offset = TemperatureScaling().fit(np.array([-1.0, 1.0]), np.array([9, 1]), np.array([1, 9]))
        >>> offset
        0.0
    """

    def fit(self, logits: Array, absent: Array, present: Array) -> tuple[float, float]:
        """`1 / temperature`, and 0."""
        return _logistic_fit(logits, absent, present, with_offset=False)


def evaluate_calibration(calibration: Calibration, metric: MultilabelMeanAveragePrecision) -> dict[str, float]:
    """Calibration error and F1 of a calibration on the scores that a metric keeps, over all processes.

    Returns:
        `ECE`: expected calibration error over all known annotations (Guo et al., ICML 2017; 15 bins of equal width: the
        distance between mean probability and share of present annotations, averaged over annotations). `ECE given`: the
        same over the annotations whose probability reaches the threshold, that is of returned labels. `F1`: of returned
        labels, over all labels together. `ECE given` is NaN where no label is returned, `F1` where moreover no
        annotation is present.
    """
    thresholds = calibration.thresholds(calibration.vocabulary)
    sums = torch.zeros(2, 3, RELIABILITY_BINS, dtype=torch.float64)  # all, returned
    present = torch.zeros((), dtype=torch.float64)
    for logits, targets, labels in metric.pieces():
        minimum = thresholds.to(logits.device)
        minimum = minimum.expand_as(logits) if labels is None else minimum[labels]
        probabilities = calibration.probabilities(logits)
        is_returned = probabilities >= minimum
        known, entries = targets >= 0, (probabilities, targets == 1, is_returned)
        probabilities, is_present, is_returned = (x.flatten() if known.all() else x[known] for x in entries)
        present += is_present.sum().cpu()
        sums[0] += _bin_sums(probabilities, is_present)
        sums[1] += _bin_sums(probabilities[is_returned], is_present[is_returned])
    processes = metric.processes()
    sums, present = processes.total(sums), processes.total(present)
    errors = [float((row[1] - row[2]).abs().sum() / row[0].sum()) for row in sums]
    given, hits = sums[1, :2].sum(dim=1).tolist()
    f1 = 2 * hits / (given + float(present)) if given + float(present) else float("nan")
    return {"ECE": errors[0], "ECE given": errors[1], "F1": f1}


def best_f1_score(scores: Array, present: Array, min_present: int = 1) -> float:
    """The threshold with the highest F1 for one label; of several the highest.

    Args:
        scores: `[N]`.
        present: Whether the label is present `[N]`.
        min_present: With fewer present images the result is NaN.

    >>> best_f1_score(np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False]))
    0.7
    """
    candidates = np.sort(scores[present])
    if len(candidates) < max(min_present, 1):
        return float("nan")
    hits = len(candidates) - np.searchsorted(candidates, candidates)
    given = len(scores) - np.searchsorted(np.sort(scores), candidates)
    f1 = 2 * hits / (given + len(candidates))
    return float(candidates[len(f1) - 1 - f1[::-1].argmax()])


def _bin_sums(probabilities: Tensor, is_present: Tensor) -> Tensor:
    """Annotations, present annotations and the sum of probabilities in each reliability bin, `[3, bins]`."""
    bins = (probabilities * RELIABILITY_BINS).int().clamp(max=RELIABILITY_BINS - 1)
    counts = [torch.bincount(some, minlength=RELIABILITY_BINS).double() for some in (bins, bins[is_present])]
    # Not `bincount` with weights, which has no deterministic form on a GPU.
    sums = torch.zeros_like(counts[0]).index_add_(0, bins, probabilities.double())
    return torch.stack([*counts, sums]).cpu()


def _logistic_fit(logits: Array, absent: Array, present: Array, with_offset: bool) -> tuple[float, float]:
    """Slope and offset of a weighted logistic regression of one variable."""
    scale = max(float(np.abs(logits).max()), 1e-30)
    high, low = (present.sum() + 1) / (present.sum() + 2), 1 / (absent.sum() + 2)
    with torch.inference_mode(False), torch.enable_grad():  # an evaluation has turned gradients off
        inputs = torch.tensor(np.stack([logits / scale, np.ones_like(logits)])[: 1 + with_offset])  # [1 or 2, N]
        weights = torch.tensor((absent + present) / (absent + present).sum())
        targets = torch.tensor((high * present + low * absent) / (absent + present))
        coefficients = torch.zeros(len(inputs), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [coefficients], max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.binary_cross_entropy_with_logits(coefficients @ inputs, targets, weights, reduction="sum")
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[arg-type]
    slope, offset = [*coefficients.tolist(), 0.0][:2]
    return slope / scale, offset
