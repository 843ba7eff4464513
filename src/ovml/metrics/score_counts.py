"""Histograms of the scores of present and of absent labels, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ovml.metrics.functional.each_label import Array

CHUNK = 1 << 22
"""Scores that are sorted into bins at once."""


class ScoreCounts:
    """Counts of scores in a fixed number of bins whose range grows with the scores.

    A bin's width is a power of two and its edges are multiples of it, so scores are assigned without rounding. Where a
    score is out of range, the bins are moved or joined in pairs; the counts at the remaining edges stay exact.

    Args:
        bins: Number of bins.
        groups: Groups of labels, counted separately.

    Attributes:
        counts: `[groups, 2, bins]`: absent, present.

    Example:
        >>> counts = ScoreCounts(bins=8)
        >>> counts.update(torch.tensor([[0.9, 0.1], [0.8, 0.3]]), torch.tensor([[1, 0], [1, -1]]))
        >>> counts.counts.sum(axis=(0, 2)).tolist()
        [1, 2]
    """

    def __init__(self, bins: int = 1000, groups: int = 1) -> None:
        self.counts: Array = np.zeros((groups, 2, bins), dtype=np.int64)
        self._width = 0.0
        self._first = 0  # the first bin begins at this many widths

    @property
    def edges(self) -> Array:
        """Edges of the bins, `[bins + 1]`; a bin holds its lower edge."""
        edges: Array = (self._first + np.arange(self.counts.shape[-1] + 1)) * self._width
        return edges

    def update(self, scores: Tensor, targets: Tensor, groups: Tensor | None = None) -> None:
        """Count scores, except those that are not finite or whose target is unknown.

        Args:
            scores: Of any shape.
            targets: Of the same shape: 1 present, 0 absent, -1 unknown.
            groups: The group of each score, or of each of the last dimension's. Default: 0.
        """
        of_score = torch.zeros_like(targets) if groups is None else groups.to(targets.device).expand_as(targets)
        flat = (tensor.reshape(-1).split(CHUNK) for tensor in (scores, targets, of_score))
        for parts in zip(*flat, strict=True):
            self._update(*parts)

    def update_pieces(
        self, pieces: Iterable[tuple[Tensor, Tensor, Tensor | None]], groups: Tensor | None = None
    ) -> None:
        """Count the scores that a metric keeps (`MultilabelMeanAveragePrecision.pieces`), piece by piece.

        Args:
            pieces: Scores, targets and labels.
            groups: The group of each label, `[L]`. Default: 0.
        """
        for scores, targets, labels in pieces:
            of_score = groups if groups is None or labels is None else groups.to(labels.device)[labels]
            self.update(scores, targets, of_score)

    def _update(self, scores: Tensor, targets: Tensor, groups: Tensor) -> None:
        kept = (targets >= 0) & scores.isfinite()
        if not kept.all():
            scores, targets, groups = scores[kept], targets[kept], groups[kept]
        scores, rows = scores.double(), 2 * groups.long() + targets.long()
        if not len(scores):
            return
        self.reach(float(scores.min()), float(scores.max()))
        bins = self.counts.shape[-1]
        place = (scores / self._width).floor().long() - self._first
        found = torch.bincount(rows * bins + place, minlength=self.counts.size)
        self.counts += found.cpu().numpy().reshape(self.counts.shape)

    def reach(self, lowest: float, highest: float) -> None:
        """Move or widen the bins so that they hold the range from the lowest to the highest score."""
        bins = self.counts.shape[-1]
        if not self._width:
            scale = max(abs(lowest), abs(highest)) or 1.0
            # Half of the bins cover the first range; not finer than the scores' own precision.
            self._width = 2.0 ** math.ceil(math.log2(max(2 * (highest - lowest) / bins, scale * 2.0**-24)))
            self._first = math.floor((lowest + highest) / 2 / self._width) - bins // 2
        while True:
            start, end = math.floor(lowest / self._width), math.floor(highest / self._width)
            filled = np.flatnonzero(self.counts.any(axis=(0, 1)))
            if len(filled):
                start, end = min(start, self._first + int(filled[0])), max(end, self._first + int(filled[-1]))
            if end - start < bins:
                break
            self._rearrange(2)
        if start < self._first or end >= self._first + bins:
            self._rearrange(1, start - (bins - 1 - (end - start)) // 2)

    def _rearrange(self, joined: int, first: int | None = None) -> None:
        """Join `joined` neighbouring bins into one, and start at another first bin."""
        bins = self.counts.shape[-1]
        places = (self._first + np.arange(bins)) // joined
        self._first = int(places[0]) if first is None else first
        self._width *= joined
        counts, filled = self.counts, np.flatnonzero(self.counts.any(axis=(0, 1)))
        self.counts = np.zeros_like(counts)
        np.add.at(self.counts.T, places[filled] - self._first, counts[..., filled].T)

    def precision_recall(self) -> tuple[Array, Array, Array]:
        """Precision and recall over all groups, with the lower edges of the bins as thresholds.

        Returns:
            precision, recall, thresholds in the form of scikit-learn's `precision_recall_curve`: thresholds rise, and
            precision and recall end with 1 and 0. Edges of empty bins are left out. Recall is NaN where no target is
            present.
        """
        absent, present = self.counts.sum(axis=0)
        filled = absent + present > 0
        hits, false = (np.cumsum(counts[filled][::-1])[::-1] for counts in (present, absent))
        precision = np.append(hits / (hits + false), 1.0)
        total = present.sum()
        recall = np.append(hits / total if total else np.full(len(hits), np.nan), 0.0)
        return precision, recall, self.edges[:-1][filled]

    def average_precision(self) -> float:
        """Average precision over all groups; scores in one bin are ties. NaN where no target is present."""
        precision, recall, _ = self.precision_recall()
        return float((-np.diff(recall) * precision[:-1]).sum())
