from ovml.metrics.average_precision import MultilabelMeanAveragePrecision as MultilabelMeanAveragePrecision
from ovml.metrics.calibration import Calibration as Calibration
from ovml.metrics.calibrators import Calibrator as Calibrator
from ovml.metrics.calibrators import PlattScaling as PlattScaling
from ovml.metrics.calibrators import TemperatureScaling as TemperatureScaling
from ovml.metrics.evaluation import OpenVocabularyEvaluation as OpenVocabularyEvaluation
from ovml.metrics.f1_at_k import PrecisionRecallF1AtK as PrecisionRecallF1AtK
from ovml.metrics.protocols import EvaluationProtocol as EvaluationProtocol
from ovml.metrics.protocols import GeneralizedZeroShot as GeneralizedZeroShot
from ovml.metrics.protocols import NamedLabels as NamedLabels
from ovml.metrics.protocols import NewWords as NewWords
from ovml.metrics.protocols import Seen as Seen
from ovml.metrics.protocols import TextLabels as TextLabels
from ovml.metrics.protocols import ZeroShot as ZeroShot
from ovml.metrics.score_counts import ScoreCounts as ScoreCounts

__all__ = [
    "Calibration",
    "Calibrator",
    "EvaluationProtocol",
    "GeneralizedZeroShot",
    "MultilabelMeanAveragePrecision",
    "NamedLabels",
    "NewWords",
    "OpenVocabularyEvaluation",
    "PlattScaling",
    "PrecisionRecallF1AtK",
    "ScoreCounts",
    "Seen",
    "TemperatureScaling",
    "TextLabels",
    "ZeroShot",
]
