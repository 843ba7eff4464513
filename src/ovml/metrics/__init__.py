"""Metrics, evaluation protocols and calibration.

Names are loaded when first used: protocols and `Calibration` need no torchmetrics, which is slow to import. Type
checkers read `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Calibration": "ovml.metrics.calibration",
    "Calibrator": "ovml.metrics.calibrators",
    "EvaluationProtocol": "ovml.metrics.protocols",
    "GeneralizedZeroShot": "ovml.metrics.protocols",
    "MultilabelMeanAveragePrecision": "ovml.metrics.average_precision",
    "NamedLabels": "ovml.metrics.protocols",
    "NewWords": "ovml.metrics.protocols",
    "OpenVocabularyEvaluation": "ovml.metrics.evaluation",
    "PlattScaling": "ovml.metrics.calibrators",
    "PrecisionRecallF1AtK": "ovml.metrics.f1_at_k",
    "ScoreCounts": "ovml.metrics.score_counts",
    "Seen": "ovml.metrics.protocols",
    "TemperatureScaling": "ovml.metrics.calibrators",
    "TextLabels": "ovml.metrics.protocols",
    "ZeroShot": "ovml.metrics.protocols",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
