"""Metrics, evaluation protocols and calibration."""

from ovml.metrics.average_precision import MultilabelMeanAveragePrecision
from ovml.metrics.calibration import Calibration, Calibrator, PlattScaling, TemperatureScaling
from ovml.metrics.evaluation import OpenVocabularyEvaluation
from ovml.metrics.f1_at_k import PrecisionRecallF1AtK
from ovml.metrics.protocols import (
    GeneralizedZeroShot,
    NamedLabels,
    NewWords,
    Protocol,
    Seen,
    TextLabels,
    ZeroShot,
)
from ovml.metrics.score_counts import ScoreCounts

__all__ = [
    "Calibration",
    "Calibrator",
    "GeneralizedZeroShot",
    "MultilabelMeanAveragePrecision",
    "NamedLabels",
    "NewWords",
    "OpenVocabularyEvaluation",
    "PlattScaling",
    "PrecisionRecallF1AtK",
    "Protocol",
    "ScoreCounts",
    "Seen",
    "TemperatureScaling",
    "TextLabels",
    "ZeroShot",
]
