"""Training: stages, what they learn, and the run that chains them."""

from ovml.training.run_folder import RunFolder
from ovml.training.stages import (
    AdapterStage,
    HeadStage,
    LadderStage,
    LoRAStage,
    PromptStage,
    Stage,
    VisionStage,
    VisualPromptStage,
)

__all__ = [
    "AdapterStage",
    "HeadStage",
    "LadderStage",
    "LoRAStage",
    "PromptStage",
    "RunFolder",
    "Stage",
    "VisionStage",
    "VisualPromptStage",
]
