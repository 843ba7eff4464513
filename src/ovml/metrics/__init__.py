"""torchmetrics `Metric`s for open-vocabulary multi-label classification."""

from ovml.metrics.average_precision import MultilabelMeanAveragePrecision
from ovml.metrics.evaluation import OpenVocabularyEvaluation
from ovml.metrics.f1_at_k import PrecisionRecallF1AtK
from ovml.metrics.score_counts import ScoreCounts

__all__ = ["MultilabelMeanAveragePrecision", "OpenVocabularyEvaluation", "PrecisionRecallF1AtK", "ScoreCounts"]
