"""Training: stages, what they learn, and the run that chains them."""

from ovml.training.adapter_stages import AdapterStage, LadderStage, LoRAStage, VisualPromptStage
from ovml.training.coop_stage import CoOpStage
from ovml.training.ram_stage import RAMStage
from ovml.training.run_folder import RunFolder
from ovml.training.stages import HeadStage, PromptStage, Stage, VisionStage

__all__ = [
    "AdapterStage",
    "CoOpStage",
    "HeadStage",
    "LadderStage",
    "LoRAStage",
    "PromptStage",
    "RAMStage",
    "RunFolder",
    "Stage",
    "VisionStage",
    "VisualPromptStage",
]
