"""Stages that train an adapter beside the frozen image tower."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from ovml.encoders.adapters import Ladder, LoRA, TowerAdapter, VisualPrompts
from ovml.training.stages import LearningParts, Stage


@dataclass(repr=False)
class AdapterStage(Stage):
    """A stage that trains an adapter beside the image tower; all of the tower's own weights are frozen.

    The head's, the loss's and the distillation's own parameters learn too. A checkpoint holds what learned. Other
    arguments are those of `Stage`.

    Args:
        num_layers: Number of last blocks that are adapted.

    Raises:
        UserError: An argument is out of its range; or, when a model is made, the tower cannot be adapted, or another
            stage changes it.

    Example:
        >>> [stage.__name__ for stage in AdapterStage.__subclasses__()]
        ['LoRAStage', 'VisualPromptStage', 'LadderStage', 'RAMStage']
    """

    distil: ClassVar[bool] = True

    num_layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.adapter  # noqa: B018 - its arguments are checked

    @property
    @abstractmethod
    def adapter(self) -> TowerAdapter:
        """What the stage adds to the image tower."""

    def parameter_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """The adapter's parameters, then the other parts' own."""
        added = self.own_groups(self.adapter.parameters(parts.image_encoder), self.name)
        return added + self.own_groups(parts.own_parameters(), "parts")


@dataclass(repr=False)
class LoRAStage(AdapterStage):
    """Low-rank adapters learn; see `ovml.encoders.adapters.LoRA`.

    A model that was saved has the adapters merged into its weights, and starts with new ones when it is trained again.
    `weight_decay` draws the adapted weights towards the original ones. Other arguments are those of `Stage`.

    Args:
        num_layers: Number of last blocks that are adapted.
        rank: Rank of an adapter.
        alpha: Scale of an adapter, divided by the rank.
        dropout: Share of an adapter's inputs that are dropped in training.
        targets: Names of the linear maps that are adapted. Default: `q_proj` and `v_proj`, as in the paper.

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

    A saved model has the prompts beside the tower's weights, which are the original's. `weight_decay` applies to the
    prompts too. Other arguments are those of `Stage`.

    Args:
        num_layers: Number of last blocks that are prompted.
        num_prompts: Number of prompts that a block reads.
        deep: Whether each block has its own.

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
    """ovml's form of RAM's ladder learns patch embeddings beside the tower; see `ovml.encoders.adapters.Ladder`.

    All learns by AdamW at one rate. `RAMStage` is the published form. A saved model has the adapters beside the tower's
    weights, which are the original's. Other arguments are those of `Stage`.

    Args:
        num_layers: Number of last blocks that the local path runs over; RAM uses the tower's depth.
        num_adapters: Number of last blocks that have an adapter.
        num_tokens: Number of tokens that each of these blocks reads.
        hidden_dim: Channels of an adapter. Default: the width of the label embeddings, as published.
        kernel_size: Kernel size of its convolutions; odd.

    Example:
        >>> LadderStage(num_adapters=1).adapter.num_layers
        3
    """

    name: ClassVar[str] = "ladder"

    num_layers: int = 3
    num_adapters: int = 3
    num_tokens: int = 0
    hidden_dim: int | None = None
    kernel_size: int = 3

    @property
    def adapter(self) -> Ladder:
        """The ladder."""
        return Ladder(self.num_layers, self.num_adapters, self.num_tokens, self.hidden_dim, self.kernel_size)
