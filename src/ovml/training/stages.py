"""Stages of training: what learns, at which rate, for how long."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from ovml.distillation import Distillation
from ovml.encoders import ImageEncoder
from ovml.encoders.adapters import TowerAdapter
from ovml.heads import Head
from ovml.losses import Loss
from ovml.prompts import PromptLearner
from ovml.training.optim import decay_groups, layer_decay_groups, warmup_cosine_schedule
from ovml.utils.errors import UserError, check_not_negative, check_positive, check_whole
from ovml.utils.parts import Part


@dataclass(frozen=True)
class LearningParts:
    """The parts of a model and of its objective that a stage can train.

    Example:
        >>> from ovml.classifier import OVMultiLabelClassifier
        >>> parts = OVMultiLabelClassifier("ovml-demo", ["red circle", "blue star"]).learning_parts
        >>> [group["name"] for group in PromptStage().parameter_groups(parts)]
        ['prompt_decay']
    """

    image_encoder: ImageEncoder
    head: Head
    prompt: PromptLearner
    loss: Loss
    distillation: Distillation

    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters of the head, the loss and the distillation."""
        return [*self.head.parameters(), *self.loss.parameters(), *self.distillation.parameters()]


@dataclass(repr=False)
class Stage(Part, ABC):
    """A part of the training with its own learning parameters, rate and length.

    Subclass it, return what learns from `parameter_groups`, and list it under `--model.stages`.

    Args:
        epochs: Passes over the training set.
        lr: Peak learning rate.
        min_lr: Learning rate at the end of the half-cosine.
        warmup_epochs: Epochs of linear warm-up from 0.
        weight_decay: Decoupled weight decay (AdamW); never on parameters of one dimension.
        batch_size: Images of an optimizer step, over all devices: batches of at most the data's batch size are
            accumulated. Default: the data's batch size on each device.
        precision: Lightning's precision of the stage on a CUDA device, unless the trainer is given one. Default:
            `bf16-mixed`, where the device multiplies bfloat16.

    Attributes:
        name: Name of the stage's folder in a run, and of its row in the results.
        distil: Whether the distillation loss is added.
        fixed_prompt: Whether the prompt is frozen, so that label embeddings are computed once.
        num_layers: Number of last blocks of the image tower that learn.
        labels_per_step: Number of seen labels that a step ranks; `None` for all.
        keeps_present: Whether the labels of a step hold all that are present in the batch.
        keep_unlabelled: Whether images without a present seen label take part in a step.

    Raises:
        UserError: An argument is out of its range.

    Example:
        >>> class ProjectionStage(Stage):
        ...     name = "projection"
        ...     def parameter_groups(self, parts):
        ...         return [{"params": list(parts.image_encoder.visual_projection.parameters()), "name": "projection"}]
        >>> ProjectionStage(epochs=1, warmup_epochs=0).fixed_prompt
        True
    """

    name: ClassVar[str]
    distil: ClassVar[bool] = False
    fixed_prompt: ClassVar[bool] = True
    keeps_present: ClassVar[bool] = True

    epochs: int = 20
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_epochs: float = 2
    weight_decay: float = 0.05
    batch_size: int | None = None
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] | None = None
    # Subclasses may make them arguments.
    num_layers: int = field(default=0, init=False)
    labels_per_step: int | None = field(default=None, init=False)
    keep_unlabelled: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0 <= self.warmup_epochs <= self.epochs:
            raise UserError(
                f"stage {self.name!r}: epochs must be at least 1 and warmup_epochs from 0 to epochs; "
                f"got epochs={self.epochs}, warmup_epochs={self.warmup_epochs}"
            )
        check_positive(f"stage {self.name!r}", lr=self.lr)
        check_not_negative(f"stage {self.name!r}", min_lr=self.min_lr, weight_decay=self.weight_decay)
        check_not_negative(f"stage {self.name!r}", num_layers=self.num_layers)
        check_whole(f"stage {self.name!r}", 1, batch_size=self.batch_size)

    @property
    def adapter(self) -> TowerAdapter | None:
        """What the stage adds to the image tower, if anything."""
        return None

    @abstractmethod
    def parameter_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """Optimizer groups (`params`, `lr`, `weight_decay`, `name`) of all that learns in this stage."""

    def own_groups(self, params: Sequence[nn.Parameter], name: str) -> list[dict[str, Any]]:
        """Optimizer groups of parameters that learn at the stage's own rate."""
        return decay_groups(params, name, self.lr, self.weight_decay)

    def optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer of the stage's groups. Default: AdamW."""
        return torch.optim.AdamW(groups, lr=self.lr)

    def schedule(self, optimizer: Optimizer, steps: float, epochs: float) -> dict[str, Any]:
        """Lightning's description of the learning rates. Default: warm-up and half-cosine, stepped per batch.

        Args:
            optimizer: Its groups' rates are the peaks.
            steps: Optimizer steps of the training.
            epochs: Epochs of the training, of which the last may be cut.
        """
        warmup = min(self.warmup_epochs / max(epochs, 1e-9), 1) * steps
        return {"scheduler": warmup_cosine_schedule(optimizer, steps, warmup, self.min_lr), "interval": "step"}


@dataclass(repr=False)
class VisionStage(Stage):
    """Stage 1 of MKT: the last blocks of the image tower learn, with distillation from the original CLIP.

    The post-layernorm, the projection, and the head's and the loss's own parameters learn too, at the peak rate `lr`.
    Other arguments are those of `Stage`.

    Args:
        num_layers: Number of last blocks that learn ("fix_layer 10" of 12 in the published code).
        layer_decay: Block `i` of `N` learns at `lr * layer_decay ** (N + 1 - i)`.

    Example:
        >>> VisionStage(epochs=5, num_layers=3).warmup_epochs
        2
    """

    name: ClassVar[str] = "vision"
    distil: ClassVar[bool] = True

    num_layers: int = 2
    layer_decay: float = 0.65

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(f"stage {self.name!r}", layer_decay=self.layer_decay)

    def parameter_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """Layer-wise decayed groups of the tower, then the other parts' own parameters."""
        groups = layer_decay_groups(parts.image_encoder, self.lr, self.weight_decay, self.layer_decay, self.num_layers)
        return groups + self.own_groups(parts.own_parameters(), "parts")


@dataclass(repr=False)
class HeadStage(Stage):
    """The head's and the loss's parameters learn; both towers are frozen, post-layernorm and projection too.

    A distillation's own parameters learn as well; a distillation without any compares the frozen tower with itself and
    changes nothing. The image tower keeps no graph and, with augmentation off, need not run again: see `FeatureCache`.
    Arguments are those of `Stage`.

    Raises:
        UserError: When a model is made: neither its head nor its loss has parameters.

    Example:
        >>> from ovml.losses import ZLPRLoss
        >>> HeadStage(epochs=5).name, [name for name, _ in ZLPRLoss(learned=True).named_parameters()]
        ('head', ['log_scale', 'learned_offset'])
    """

    name: ClassVar[str] = "head"
    distil: ClassVar[bool] = True

    def parameter_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """The head's, the loss's and the distillation's own parameters."""
        if not [*parts.head.parameters(), *parts.loss.parameters()]:
            raise UserError(
                f"stage 'head': neither {type(parts.head).__name__} nor {type(parts.loss).__name__} has parameters; "
                "take a head such as QueryHead, or another stage"
            )
        return self.own_groups(parts.own_parameters(), "parts")


@dataclass(repr=False)
class PromptStage(Stage):
    """Stage 2 of MKT: the prompt learner's parameters learn by the ranking loss alone; the image tower is frozen.

    Other arguments are those of `Stage`.

    Args:
        labels_per_step: Rank only this many of the seen labels in a step: all that are present in the batch, and others
            drawn at random. It bounds the text tower's work for thousands of labels, and is another loss: scores are
            normalized over the labels drawn. Default: all labels, as in the paper.

    Example:
        >>> PromptStage(epochs=2, labels_per_step=500).fixed_prompt
        False
    """

    name: ClassVar[str] = "prompt"
    fixed_prompt: ClassVar[bool] = False

    epochs: int = 4
    min_lr: float = 1e-8
    warmup_epochs: float = 0
    labels_per_step: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels_per_step is not None and self.labels_per_step < 2:
            raise UserError(f"stage 'prompt': labels_per_step must be at least 2; got {self.labels_per_step}")

    def parameter_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """The prompt learner's own parameters."""
        return self.own_groups(parts.prompt.learned_parameters(), "prompt")


def check_stages(stages: Sequence[Stage]) -> None:
    """Check that stages have names of their own, and that one that adds an adapter alone changes the image tower.

    Raises:
        UserError: Two have the same name, or two change the image tower, one of them with an adapter.
    """
    names = [stage.name for stage in stages]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"stages: two are named {repeated[0]!r}, so the second would be taken for finished; "
            "subclass one and give it a name of its own"
        )
    adapted = next((stage for stage in stages if stage.adapter is not None), None)
    others = [stage.name for stage in stages if stage.num_layers and stage is not adapted]
    if adapted is not None and others:
        raise UserError(f"stages: {adapted.name!r} and {others[0]!r} change the same tower; list one of them")


def find_stage(stages: Sequence[Stage], which: str | int) -> Stage:
    """The stage of a name or at a position.

    Raises:
        UserError: There is none.

    >>> find_stage([VisionStage(), PromptStage()], "prompt").name, find_stage([VisionStage(), PromptStage()], 0).name
    ('prompt', 'vision')
    """
    names = [stage.name for stage in stages]
    position = names.index(which) if which in names else which
    if isinstance(position, str) or not 0 <= position < len(stages):
        raise UserError(f"stage: there is no {which!r}; it is one of {', '.join(names)}, or 0 to {len(stages) - 1}")
    return stages[position]
