"""ovml: open-vocabulary multi-label image classification with PyTorch Lightning.

Names are loaded when first used, so that `import ovml` costs next to nothing.
"""

from typing import TYPE_CHECKING

from ovml.utils.lazy import lazy_names
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

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "classifier": ["OVMultiLabelClassifier"],
        "inference.tagger": ["LabelScore", "Tagger"],
        "model": ["OpenVocabularyModel"],
        "saving.load": ["load_model"],
        "training.stages": ["HeadStage", "PromptStage", "Stage", "VisionStage"],
        "training.trainers": ["fit"],
        "utils.errors": ["UserError"],
        "utils.version": ["__version__"],
        "vocabulary": ["LabelVocabulary"],
    },
)
