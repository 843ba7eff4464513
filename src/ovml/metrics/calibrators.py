"""Calibrators: fit a calibration to the scores of a validation, and evaluate it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ovml.metrics.average_precision import MultilabelMeanAveragePrecision
from ovml.metrics.calibration import Calibration
from ovml.metrics.score_counts import ScoreCounts
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

BINS = 1 << 16
"""Of scores, in a fit: far finer than what the fitted curve can tell apart."""
RELIABILITY_BINS = 15

Array = np.ndarray[Any, Any]


class Calibrator(ABC):
    """Fits a `Calibration` to what a validation found. Subclass it and write `fit`.

    Args:
        thresholds: `global`: one for all labels. `per-label`: one for each, the best for its own F1, where enough of
            its marks are present.
        min_present: Present marks that a label needs for a threshold of its own.

    Raises:
        UserError: An argument is no good.

    Example:
        >>> class Identity(Calibrator):
        ...     def fit(self, logits, absent, present):
        ...         return 1.0, 0.0
    """

    def __init__(self, thresholds: Literal["global", "per-label"] = "global", min_present: int = 10) -> None:
        if thresholds not in ("global", "per-label") or min_present < 1:
            raise UserError(
                "calibrator: thresholds must be 'global' or 'per-label' and min_present at least 1; "
                f"got {thresholds!r}, {min_present}"
            )
        self.thresholds = thresholds
        self.min_present = min_present

    @abstractmethod
    def fit(self, logits: Array, absent: Array, present: Array) -> tuple[float, float]:
        """Slope and offset of the curve.

        Args:
            logits: Scores `[N]`.
            absent: How often each was that of an absent mark `[N]`.
            present: The same of a present mark `[N]`.
        """

    def calibrate(self, metric: MultilabelMeanAveragePrecision, vocabulary: LabelVocabulary) -> Calibration | None:
        """The calibration for the scores that a metric keeps; `None` where no mark, or every mark, is present.

        Args:
            metric: Updated with all images; gathered from all processes (`sync_context`).
            vocabulary: The labels of its columns.
        """
        counts = ScoreCounts(BINS)
        counts.update_pieces(metric.pieces())
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
        if self.thresholds == "per-label":
            of_label = metric.per_label(lambda scores, is_present: best_f1_score(scores, is_present, self.min_present))
            own = tuple(curve.probabilities(of_label).nan_to_num(threshold).tolist())
        return replace(curve, threshold=threshold, label_thresholds=own)


class PlattScaling(Calibrator):
    """`p = sigmoid(slope * logit + offset)` by maximum likelihood (Platt, 1999), over all known marks.

    As Platt has it, the targets are `(P + 1) / (P + 2)` for the `P` present marks and `1 / (A + 2)` for the `A` absent
    ones, so that the curve stays finite where the scores separate them.

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
    """`p = sigmoid(logit / temperature)`: for heads whose logits are 0 where a label is as likely as not.

    It suits a head that was trained with binary cross-entropy (Guo et al., ICML 2017), and none that ranks alone.

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
    """How far the probabilities can be trusted, on the scores that a metric keeps.

    Returns:
        `ECE`: expected calibration error over all known marks (15 bins of equal width: the mean distance of mean
        probability and share of present marks, weighted by the bins' marks; Guo et al., ICML 2017). `ECE given`:
        the same over the marks whose probability reaches the threshold, which are the ones that a person sees.
        `F1`: of those, over all labels together. The last two are NaN without such marks.
    """
    thresholds = calibration.thresholds(calibration.vocabulary)
    sums = torch.zeros(2, 3, RELIABILITY_BINS, dtype=torch.float64)  # all or given; marks, present, probability
    present = 0
    for logits, marks, labels in metric.pieces():
        least = thresholds.to(logits.device)
        least = least.expand_as(logits) if labels is None else least[labels]
        probabilities = calibration.probabilities(logits)
        is_given = probabilities >= least
        known, of_marks = marks >= 0, (probabilities, marks == 1, is_given)
        probabilities, is_present, is_given = (x.flatten() if known.all() else x[known] for x in of_marks)
        present += int(is_present.sum())
        sums[0] += _bin_sums(probabilities, is_present)
        sums[1] += _bin_sums(probabilities[is_given], is_present[is_given])
    errors = [float((row[1] - row[2]).abs().sum() / row[0].sum()) for row in sums]
    given, hits = sums[1, :2].sum(dim=1).tolist()
    f1 = 2 * hits / (given + present) if given + present else float("nan")
    return {"ECE": errors[0], "ECE given": errors[1], "F1": f1}


def best_f1_score(scores: Array, present: Array, min_present: int = 1) -> float:
    """The score from which on to call a label present so that F1 is greatest; the greatest of several such scores.

    Args:
        scores: `[N]`.
        present: Whether the label is present `[N]`.
        min_present: With fewer present marks the result is NaN.

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
    """Of each reliability bin marks, present marks and the sum of the probabilities, `[3, bins]`."""
    bins = (probabilities * RELIABILITY_BINS).int().clamp(max=RELIABILITY_BINS - 1)
    counts = [(bins, None), (bins[is_present], None), (bins, probabilities.double())]
    return torch.stack([torch.bincount(b, w, minlength=RELIABILITY_BINS).double() for b, w in counts]).cpu()


def _logistic_fit(logits: Array, absent: Array, present: Array, with_offset: bool) -> tuple[float, float]:
    """Weighted logistic regression of one variable, by Newton's method with halved steps."""
    scale = max(float(np.abs(logits).max()), 1e-30)
    inputs = np.stack([logits / scale, np.ones_like(logits)])[: 1 + with_offset]  # [1 or 2, N]
    weights = (absent + present).astype(float)
    high, low = (present.sum() + 1) / (present.sum() + 2), 1 / (absent.sum() + 2)
    targets = (high * present + low * absent) / weights

    def loss(coefficients: Array) -> float:
        values = coefficients @ inputs
        return float((weights * (np.logaddexp(0, values) - targets * values)).sum())

    coefficients = np.zeros(len(inputs))
    if with_offset:
        share = (weights * targets).sum() / weights.sum()
        coefficients[1] = np.log(share / (1 - share))
    value = loss(coefficients)
    for _ in range(100):
        probabilities = 1 / (1 + np.exp(-np.clip(coefficients @ inputs, -500, 500)))
        gradient = inputs @ (weights * (probabilities - targets))
        hessian = (inputs * (weights * probabilities * (1 - probabilities))) @ inputs.T
        hessian += 1e-9 * weights.sum() * np.eye(len(inputs))
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while (lower := loss(coefficients - size * step)) > value and size > 1e-6:
            size /= 2
        gain, coefficients, value = value - lower, coefficients - size * step, lower
        if gain <= 1e-12 * abs(value):
            break
    slope, offset = [*coefficients.tolist(), 0.0][:2]
    return slope / scale, offset
