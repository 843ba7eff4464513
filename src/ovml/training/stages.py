"""Stages of training: what learns, at which rate, for how long."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ovml.encoders.adapters import Ladder, LoRA, TowerAdapter, VisualPrompts
from ovml.training.optim import layer_decay_groups
from ovml.training.parts import LearningParts
from ovml.utils.errors import UserError
from ovml.utils.parts import Part


@dataclass(repr=False)
class Stage(Part, ABC):
    """A part of the training with its own learning parameters, rate and length.

    Subclass it, say in `parameter_groups` what learns, and list it under `--model.stages`.

    Args:
        epochs: Passes over the training set.
        lr: Peak learning rate.
        min_lr: Rate at the end of the half-cosine.
        warmup_epochs: Linear warm-up from 0, in epochs.
        weight_decay: Decoupled weight decay (AdamW); never on parameters of one dimension.

    Attributes:
        name: Names the stage's folder in a run and its row in the results.
        distil: Whether the distillation loss is added.
        fixed_prompt: Whether label embeddings stay as they are, so that they are computed once.
        num_layers: Last blocks of the image tower that learn.
        labels_per_step: Seen labels that a step ranks; `None` for all.

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

    epochs: int = 20
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_epochs: float = 2
    weight_decay: float = 0.05

    num_layers: ClassVar[int] = 0
    labels_per_step: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0 <= self.warmup_epochs <= self.epochs:
            raise UserError(
                f"stage {self.name!r}: epochs must be at least 1 and warmup_epochs from 0 to epochs; "
                f"got epochs={self.epochs}, warmup_epochs={self.warmup_epochs}"
            )

    @property
    def adapter(self) -> TowerAdapter | None:
        """What the stage adds to the image tower, if anything."""
        return None

    @abstractmethod
    def parameter_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """Optimizer groups (`params`, `lr`, `weight_decay`, `name`) of all that learns in this stage."""

    def part_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """Groups of the head's, the loss's and the distillation's own parameters."""
        return decay_groups(parts.own_parameters(), "parts", self.lr, self.weight_decay)


@dataclass(repr=False)
class VisionStage(Stage):
    """Stage 1 of MKT: the last blocks of the image tower learn, with distillation from the original CLIP.

    The post-layernorm, the projection, and the head's and the loss's own parameters learn too.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`; the rate of post-layernorm, projection and head.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`.
        layer_decay: Block `i` of `N` learns at `lr * layer_decay ** (N + 1 - i)`.
        num_layers: Number of last blocks that learn ("fix_layer 10" of 12 in the published code).

    Example:
        >>> VisionStage(epochs=5, num_layers=3).warmup_epochs
        2
    """

    name: ClassVar[str] = "vision"
    distil: ClassVar[bool] = True

    layer_decay: float = 0.65
    num_layers: int = 2  # type: ignore[misc]

    def parameter_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """Layer-wise decayed groups of the tower, then the other parts' own parameters."""
        groups = layer_decay_groups(parts.image_encoder, self.lr, self.weight_decay, self.layer_decay, self.num_layers)
        return groups + self.part_groups(parts)


@dataclass(repr=False)
class HeadStage(Stage):
    """Both towers are frozen, post-layernorm and projection too; the head's and the loss's parameters learn.

    A distillation's own parameters learn as well; a distillation without any compares the frozen tower with itself and
    changes nothing. The image tower keeps no graph and, with augmentation off, need not run again: see `FeatureCache`.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`.

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
        return self.part_groups(parts)


@dataclass(repr=False)
class PromptStage(Stage):
    """Stage 2 of MKT: the image tower is frozen, the prompt learner's parameters learn, ranking loss alone.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`.
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
    labels_per_step: int | None = None  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels_per_step is not None and self.labels_per_step < 2:
            raise UserError(f"stage 'prompt': labels_per_step must be at least 2; got {self.labels_per_step}")

    def parameter_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """The prompt learner's own parameters."""
        return decay_groups(parts.prompt.learned_parameters(), "prompt", self.lr, self.weight_decay)


@dataclass(repr=False)
class AdapterStage(Stage):
    """A stage that trains an adapter beside the frozen image tower; norm, projection and the tower's weights stay.

    The head's, the loss's and the distillation's own parameters learn too. A checkpoint holds what learned.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`.
        num_layers: Number of last blocks that are adapted.

    Example:
        >>> [stage.__name__ for stage in AdapterStage.__subclasses__()]
        ['LoRAStage', 'VisualPromptStage', 'LadderStage']
    """

    distil: ClassVar[bool] = True

    num_layers: int = 2  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.adapter  # noqa: B018 - its arguments are checked

    @property
    @abstractmethod
    def adapter(self) -> TowerAdapter:
        """What the stage adds to the image tower."""

    def parameter_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """The adapter's parameters, then the other parts' own."""
        added = self.adapter.parameters(parts.image_encoder)
        return decay_groups(added, self.name, self.lr, self.weight_decay) + self.part_groups(parts)


@dataclass(repr=False)
class LoRAStage(AdapterStage):
    """Low-rank adapters learn; see `ovml.encoders.adapters.LoRA`.

    A model that was saved has the adapters merged into its weights, and starts with new ones when it is trained again.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`; it draws the weights towards the original ones.
        num_layers: See `LoRA`, as for the rest.
        rank: See `LoRA`.
        alpha: See `LoRA`.
        dropout: See `LoRA`.
        targets: See `LoRA`.

    Raises:
        UserError: An argument is out of its range; or, when a model is made, the tower cannot be adapted, or another
            stage changes it.

    Example:
        >>> LoRAStage(rank=4).adapter
        LoRA(num_layers=2, rank=4, alpha=16.0, dropout=0.0, targets=None)
    """

    name: ClassVar[str] = "lora"

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] | None = None

    @property
    def adapter(self) -> LoRA:
        """The low-rank adapters."""
        return LoRA(self.num_layers, self.rank, self.alpha, self.dropout, self.targets)


@dataclass(repr=False)
class VisualPromptStage(AdapterStage):
    """Visual prompts learn; see `ovml.encoders.adapters.VisualPrompts`.

    A saved model has the prompts beside the tower's weights, which are the original's.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`; of the prompts too.
        num_layers: See `VisualPrompts`, as for the rest.
        num_prompts: See `VisualPrompts`.
        deep: See `VisualPrompts`.

    Raises:
        UserError: An argument is out of its range; or, when a model is made, the tower cannot be adapted, or another
            stage changes it.

    Example:
        >>> VisualPromptStage(num_prompts=4).adapter
        VisualPrompts(num_layers=2, num_prompts=4, deep=True)
    """

    name: ClassVar[str] = "visual_prompt"

    weight_decay: float = 0.0
    num_prompts: int = 10
    deep: bool = True

    @property
    def adapter(self) -> VisualPrompts:
        """The prompts."""
        return VisualPrompts(self.num_layers, self.num_prompts, self.deep)


@dataclass(repr=False)
class LadderStage(AdapterStage):
    """RAM's ladder learns patch embeddings beside the tower; see `ovml.encoders.adapters.Ladder`.

    All learns by AdamW at one rate; in the published code the adapters learn at a tenth of it, the tokens by SGD at
    1e-3. A saved model has the adapters beside the tower's weights, which are the original's.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`.
        num_layers: See `Ladder`, as for the rest.
        num_adapters: See `Ladder`.
        num_tokens: See `Ladder`.
        hidden_dim: See `Ladder`.
        kernel_size: See `Ladder`.

    Raises:
        UserError: An argument is out of its range; or, when a model is made, the tower cannot be adapted, or another
            stage changes it.

    Example:
        >>> LadderStage(num_adapters=1).adapter.num_layers
        3
    """

    name: ClassVar[str] = "ladder"

    num_layers: int = 3  # type: ignore[misc]
    num_adapters: int = 3
    num_tokens: int = 0
    hidden_dim: int | None = None
    kernel_size: int = 3

    @property
    def adapter(self) -> Ladder:
        """The ladder."""
        return Ladder(self.num_layers, self.num_adapters, self.num_tokens, self.hidden_dim, self.kernel_size)


def decay_groups(params: Sequence[nn.Parameter], name: str, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups of one rate; parameters of one dimension have no weight decay."""
    matrices = [p for p in params if p.ndim > 1]
    vectors = [p for p in params if p.ndim <= 1]
    groups = [(matrices, f"{name}_decay", weight_decay), (vectors, f"{name}_no_decay", 0.0)]
    return [{"params": p, "name": n, "lr": lr, "weight_decay": w} for p, n, w in groups if p]


def check_stages(stages: Sequence[Stage]) -> None:
    """Check that at most one stage changes the image tower.

    Raises:
        UserError: Two do, one of them with an adapter.
    """
    adapted = next((stage for stage in stages if stage.adapter is not None), None)
    others = [stage.name for stage in stages if stage.num_layers and stage is not adapted]
    if adapted is not None and others:
        raise UserError(f"stages: {adapted.name!r} and {others[0]!r} change the same tower; list one of them")
