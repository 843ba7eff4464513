"""ovml: open-vocabulary multi-label image classification with PyTorch Lightning.

Names are loaded when first used, so that `import ovml` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ovml.utils.version import __version__ as __version__

if TYPE_CHECKING:
    from ovml.classifier import OVMultiLabelClassifier as OVMultiLabelClassifier
    from ovml.inference.tagger import LabelScore as LabelScore
    from ovml.inference.tagger import Tagger as Tagger
    from ovml.model import OpenVocabularyModel as OpenVocabularyModel
    from ovml.saving.load import load_model as load_model
    from ovml.training.stages import HeadStage as HeadStage
    from ovml.training.stages import PromptStage as PromptStage
    from ovml.training.stages import Stage as Stage
    from ovml.training.stages import VisionStage as VisionStage
    from ovml.training.trainers import fit as fit
    from ovml.utils.errors import UserError as UserError
    from ovml.vocabulary import LabelVocabulary as LabelVocabulary


_HOME = {
    "HeadStage": "ovml.training.stages",
    "LabelScore": "ovml.inference.tagger",
    "LabelVocabulary": "ovml.vocabulary",
    "OVMultiLabelClassifier": "ovml.classifier",
    "OpenVocabularyModel": "ovml.model",
    "PromptStage": "ovml.training.stages",
    "Stage": "ovml.training.stages",
    "Tagger": "ovml.inference.tagger",
    "UserError": "ovml.utils.errors",
    "VisionStage": "ovml.training.stages",
    "fit": "ovml.training.trainers",
    "load_model": "ovml.saving.load",
}

__all__ = [
    "HeadStage",
    "LabelScore",
    "LabelVocabulary",
    "OVMultiLabelClassifier",
    "OpenVocabularyModel",
    "PromptStage",
    "Stage",
    "Tagger",
    "UserError",
    "VisionStage",
    "__version__",
    "fit",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ovml' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
