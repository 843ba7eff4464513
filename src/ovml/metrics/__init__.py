"""Metrics, evaluation protocols and calibration.

Names are loaded when first used: protocols and `Calibration` need no torchmetrics, which is slow to import. Type
checkers read `__init__.pyi`.
"""

from ovml.utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "average_precision": ["MultilabelMeanAveragePrecision"],
        "calibration": ["Calibration"],
        "calibrators": ["Calibrator", "PlattScaling", "TemperatureScaling"],
        "evaluation": ["OpenVocabularyEvaluation"],
        "f1_at_k": ["PrecisionRecallF1AtK"],
        "protocols": [
            *("EvaluationProtocol", "GeneralizedZeroShot", "NamedLabels", "NewWords", "Seen", "TextLabels", "ZeroShot")
        ],
        "score_counts": ["ScoreCounts"],
    },
)
