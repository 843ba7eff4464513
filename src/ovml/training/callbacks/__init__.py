"""Lightning callbacks."""

from ovml.training.callbacks.averaging import LearnedEMA
from ovml.training.callbacks.feature_cache import FeatureCache
from ovml.training.callbacks.plots import EvaluationPlots

__all__ = ["EvaluationPlots", "FeatureCache", "LearnedEMA"]
