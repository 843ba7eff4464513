"""Metrics, evaluation protocols and calibration.

Names are loaded when first used: protocols and `Calibration` need no torchmetrics, which is slow to import. Type
checkers read `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "average_precision": ["MultilabelMeanAveragePrecision"],
    "calibration": ["Calibration"],
    "calibrators": ["Calibrator", "PlattScaling", "TemperatureScaling"],
    "evaluation": ["OpenVocabularyEvaluation"],
    "f1_at_k": ["PrecisionRecallF1AtK"],
    "protocols": [
        *("EvaluationProtocol", "GeneralizedZeroShot", "NamedLabels", "NewWords", "Seen", "TextLabels", "ZeroShot")
    ],
    "score_counts": ["ScoreCounts"],
}
_HOME = {name: f"{__name__}.{module}" for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
