"""What can learn."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ovml.distillation import Distillation
from ovml.encoders import ImageEncoder
from ovml.heads import Head
from ovml.losses import Loss
from ovml.prompts import PromptLearner


@dataclass(frozen=True)
class LearningParts:
    """The parts of a model and of its objective that a stage can train; see `Stage.parameter_groups`."""

    image_encoder: ImageEncoder
    head: Head
    prompt: PromptLearner
    loss: Loss
    distillation: Distillation

    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters of the head, the loss and the distillation."""
        return [*self.head.parameters(), *self.loss.parameters(), *self.distillation.parameters()]
