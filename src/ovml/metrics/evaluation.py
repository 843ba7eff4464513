"""The evaluation of a model by several protocols."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.utilities.prints import rank_zero_only

from ovml.metrics.average_precision import MultilabelMeanAveragePrecision
from ovml.metrics.calibration import Calibration
from ovml.metrics.calibrators import Calibrator, PlattScaling, evaluate_calibration
from ovml.metrics.f1_at_k import PrecisionRecallF1AtK
from ovml.metrics.functional.average_precision import label_average_precision
from ovml.metrics.protocols import CALIBRATION, EvaluationProtocol, chosen_protocols, label_columns
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

logger = logging.getLogger(__name__)


class OpenVocabularyEvaluation(nn.Module):
    """Mean average precision and precision, recall, F1 at k of every protocol, and the calibration of scores.

    Each protocol is scored by itself, because the scores of a head may depend on which labels it is given.

    Args:
        protocols: Protocols beside ZSL, GZSL and seen labels.
        ks: The k of precision, recall and F1. A protocol with fewer labels than a k goes without it.
        images: Which images count: `all` (as MKT and BiAM do on NUS-WIDE), or those `labelled`, with at least one
            present label among those scored (as BiAM on Open Images, QKS, DualCoOp and RAM do).
        calibrator: Fits probabilities to the scores. Default: `PlattScaling`.
        empty_labels: See `MultilabelMeanAveragePrecision`.

    Attributes:
        vocabulary: The labels, once `prepare` was called.
        columns: Columns of the vocabulary by protocol; protocols without labels in the vocabulary are left out.

    Raises:
        UserError: Names of protocols are repeated or unusable, or `images` is neither `all` nor `labelled`.

    Example:
        >>> evaluation = OpenVocabularyEvaluation(ks=(1,))
        >>> evaluation.prepare(LabelVocabulary(("cat", "dog"), ("horse",)))
        >>> scores, targets = torch.tensor([[0.9, 0.1, 0.3]]), torch.tensor([[1, 0, 1]])
        >>> evaluation.update(lambda columns: scores[:, columns], targets)
        >>> {name: round(float(value), 2) for name, value in evaluation.compute().items() if "gzsl" in name}
        {'gzsl/P@1': 1.0, 'gzsl/R@1': 0.5, 'gzsl/F1@1': 0.67, 'gzsl/mAP': 1.0}
    """

    def __init__(
        self,
        protocols: Sequence[EvaluationProtocol] | None = None,
        ks: Sequence[int] = (3, 5),
        images: Literal["all", "labelled"] = "all",
        calibrator: Calibrator | None = None,
        empty_labels: Literal["skip", "zero", "zero_if_marked"] = "skip",
    ) -> None:
        super().__init__()
        if images not in ("all", "labelled"):
            raise UserError(f"images must be 'all' or 'labelled'; got {images!r}")
        self.protocols = chosen_protocols(protocols)
        self.ks = tuple(ks)
        self.images = images
        self.calibrator = calibrator if calibrator is not None else PlattScaling()
        self.empty_labels = empty_labels
        self.vocabulary: LabelVocabulary | None = None
        self.columns: dict[str, range | list[int]] = {}
        self._metrics = nn.ModuleList()

    @property
    def titles(self) -> dict[str, str]:
        """Titles of the protocols by name, in the order of tables."""
        return {protocol.name: protocol.title for protocol in self.protocols}

    @property
    def metric_names(self) -> list[str]:
        """Names of what `finish` returns where all can be computed; `prepare` must have been called."""
        ks = {name: [k for k in self.ks if k <= len(columns)] for name, columns in self.columns.items()}
        at_k = {name: [f"{metric}@{k}" for k in own for metric in ("P", "R", "F1")] for name, own in ks.items()}
        names = [f"{name}/{metric}" for name, metrics in at_k.items() for metric in ("mAP", *metrics)]
        return names + [f"{CALIBRATION}/{name}" for name in ("ECE", "ECE given", "F1")]

    @property
    def headline(self) -> str:
        """Name of the metric that stands for all others."""
        return "zsl/mAP" if "zsl" in self.columns else "seen/mAP"

    @property
    def widest(self) -> str:
        """The protocol with the most labels: all of the vocabulary."""
        return max(self.columns, key=lambda name: len(self.columns[name]))

    def prepare(self, vocabulary: LabelVocabulary | None) -> None:
        """Find each protocol's columns and metrics; does nothing without a vocabulary, or for the same one again.

        Raises:
            UserError: A protocol's columns do not fit the vocabulary.
        """
        if vocabulary is None or vocabulary == self.vocabulary:
            return
        found = {protocol.name: label_columns(protocol, vocabulary) for protocol in self.protocols}
        self.columns = {name: columns for name, columns in found.items() if columns}
        self.vocabulary = vocabulary
        self._metrics = nn.ModuleList(self._make_metrics(len(columns)) for columns in self.columns.values())

    def _make_metrics(self, num_labels: int) -> MetricCollection:
        metrics: dict[str, Any] = {"mAP": MultilabelMeanAveragePrecision(self.empty_labels)}
        if ks := [k for k in self.ks if k <= num_labels]:
            metrics["at_k"] = PrecisionRecallF1AtK(ks)
        return MetricCollection(metrics, compute_groups=False)

    def _metrics_by_protocol(self) -> dict[str, MetricCollection]:
        return dict(zip(self.columns, cast("list[MetricCollection]", self._metrics), strict=True))

    def update(self, score: Callable[[slice | list[int]], Tensor], targets: Tensor) -> None:
        """Add a batch to every protocol.

        Args:
            score: Returns the logits `[B, L']` of the labels at `L'` columns of the vocabulary, scored together.
            targets: `[B, L]`: 1 present, 0 absent, -1 unknown.

        Raises:
            ValueError: `prepare` was not called, or the shapes do not fit.
        """
        if self.vocabulary is None or targets.ndim != 2 or targets.shape[1] != len(self.vocabulary):
            labels = "call prepare(vocabulary) first" if self.vocabulary is None else f"{len(self.vocabulary)} labels"
            raise ValueError(f"targets must be [B, L] ({labels}); got {list(targets.shape)}")
        for name, metrics in self._metrics_by_protocol().items():
            columns = self.columns[name]
            index = slice(columns.start, columns.stop) if isinstance(columns, range) else columns
            logits, own_targets = score(index), targets[:, index]
            if self.images == "labelled":
                labelled = (own_targets == 1).any(dim=1)
                logits, own_targets = logits[labelled], own_targets[labelled]
            if metrics["mAP"].device != logits.device:  # `prepare` may come after the model was moved
                metrics.to(logits.device)
            metrics.update(logits, own_targets)

    def update_empty(self, device: torch.device | str = "cpu") -> None:
        """Add a batch of no images where none was added: a process without images takes part in what others compute."""
        if self.vocabulary is not None and all(m["mAP"].update_called for m in self._metrics_by_protocol().values()):
            return
        nothing = torch.empty(0, len(self.vocabulary or ()), device=device)
        self.update(lambda columns: nothing[:, columns], nothing.to(torch.int8))

    def compute(self) -> dict[str, Tensor]:
        """Return `protocol/metric` over all processes, for every protocol that was updated."""
        results: dict[str, Tensor] = {}
        for name, metrics in self._metrics_by_protocol().items():
            if metrics["mAP"].update_called:
                _log_dropped_ks(name, len(self.columns[name]), self.ks)
                results |= {f"{name}/{metric}": value for metric, value in metrics.compute().items()}
        return results

    def finish(
        self, device: torch.device | str, calibration: Calibration | None, calibrate: bool
    ) -> tuple[dict[str, float], Calibration | None]:
        """Compute all metrics over all processes, and forget all batches. Scores are exchanged once.

        Args:
            device: Where the scores are.
            calibration: The model's; how good it is counts among the metrics.
            calibrate: Fit a new calibration first.

        Returns:
            The metrics and the calibration, the same on all processes.
        """
        self.update_empty(device)
        if calibrate and self.calibrator.of_label is not None:
            self.scores_of().each_label([label_average_precision, self.calibrator.of_label])
        found = self.compute()
        metrics: dict[str, float] = dict(zip(found, torch.stack([*found.values()]).tolist(), strict=True))
        calibration = self.calibrate() if calibrate else calibration
        metrics |= self.calibration_metrics(calibration)
        self.reset()
        return metrics, calibration

    def reset(self) -> None:
        """Forget all batches."""
        for metrics in self._metrics_by_protocol().values():
            metrics.reset()

    def scores_of(self, protocol: str | None = None) -> MultilabelMeanAveragePrecision:
        """The average precision of a protocol, which keeps its scores.

        Args:
            protocol: Its name. Default: the widest.

        Raises:
            ValueError: There is no such protocol.
        """
        protocol = self.widest if protocol is None else protocol
        if protocol not in self.columns:
            raise ValueError(f"protocol must be one of {list(self.columns)}; got {protocol!r}")
        return cast("MultilabelMeanAveragePrecision", self._metrics_by_protocol()[protocol]["mAP"])

    def calibrate(self) -> Calibration | None:
        """Fit the calibrator to the scores of all labels; `None` where no target, or every target, is present."""
        if self.vocabulary is None:
            return None
        return self.calibrator.calibrate(self.scores_of(), self.vocabulary)

    def calibration_metrics(self, calibration: Calibration | None) -> dict[str, float]:
        """`calibration/ECE` and so on (`evaluate_calibration`); empty for a calibration of other labels."""
        if calibration is None or calibration.vocabulary != self.vocabulary:
            return {}
        found = evaluate_calibration(calibration, self.scores_of())
        return {f"{CALIBRATION}/{name}": value for name, value in found.items() if not math.isnan(value)}


@cache  # a run evaluates several times
@rank_zero_only
def _log_dropped_ks(protocol: str, num_labels: int, ks: tuple[int, ...]) -> None:
    """Say once which k a protocol has too few labels for."""
    if dropped := [k for k in ks if k > num_labels]:
        labels = "1 label" if num_labels == 1 else f"{num_labels} labels"
        logger.warning("%s has %s: left out are P, R and F1 at %s", protocol, labels, ", ".join(map(str, dropped)))
