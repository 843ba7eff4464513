"""Training: stages, what they learn, and the run that chains them."""

from ovml.training.ladder import LadderStage
from ovml.training.stages import HeadStage, PromptStage, RunFolder, Stage, VisionStage
from ovml.training.tuning import LoRAStage, VisualPromptStage

__all__ = [
    "HeadStage",
    "LadderStage",
    "LoRAStage",
    "PromptStage",
    "RunFolder",
    "Stage",
    "VisionStage",
    "VisualPromptStage",
]
