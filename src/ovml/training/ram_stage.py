"""RAM's training as published, in one stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.optim import Optimizer

from ovml.encoders.adapters import RAMLadder
from ovml.training.adapter_stages import AdapterStage
from ovml.training.optim import AdamWAndSGD, epoch_cosine_schedule
from ovml.training.stages import LearningParts
from ovml.utils.errors import check_not_negative, check_positive


@dataclass(repr=False)
class RAMStage(AdapterStage):
    r"""RAM as published (Tan et al., CVPR 2025): its ladder, the prompt and the head's temperatures learn together.

    Three groups, each with its own rate, and weight decay on all parameters:

    - the adapters of the ladder, by AdamW at `lr`;
    - the head's, the loss's and the distillation's own parameters (of `RAMHead` its temperatures), by AdamW at
      `temperature_lr`;
    - the tokens of the ladder and the prompt's own parameters (of `DeepPrompt` its tokens), by SGD at `token_lr`.

    A rate is constant in an epoch; see `ovml.training.optim.epoch_cosine`. The average of weights that the published
    code evaluates is a callback, `LearnedEMA`. With several processes, batch norm uses each process's own images. See
    `RAMLadder` for the tower.

    Args:
        epochs: Passes over the training set.
        lr: Rate of the adapters.
        min_lr: Rate at the end of the cosine, which the training does not reach.
        warmup_epochs: First epoch without warm-up.
        weight_decay: Decoupled for AdamW, part of the gradient for SGD.
        num_layers: Number of last blocks that have an adapter and tokens.
        num_tokens: Number of tokens in each of these blocks.
        path_layers: Number of last blocks that the local path runs over. Default: all.
        kernel_size: Kernel size of the convolution over an adapter's maps; odd.
        float16_tokens: Whether the ladder's tokens and their gradients are rounded to float16 in each pass.
        temperature_lr: Rate of temperatures.
        token_lr: Rate of tokens.
        momentum: Of SGD.
        warmup_lr: Rate from which the warm-up of each group begins.
        schedule_epochs: Where the cosine ends.
        keep_unlabelled: Whether images without a present seen label take part in a step, as they do in the published
            code where its lists of images have any.

    Example:
        >>> RAMStage().adapter
        RAMLadder(num_layers=3, num_tokens=8, path_layers=None, kernel_size=3, float16_tokens=True)
    """

    name: ClassVar[str] = "ram"
    fixed_prompt: ClassVar[bool] = False

    epochs: int = 6
    lr: float = 5e-6
    min_lr: float = 1e-7
    warmup_epochs: float = 3
    weight_decay: float = 1e-4
    num_layers: int = 3
    num_tokens: int = 8
    path_layers: int | None = None
    kernel_size: int = 3
    float16_tokens: bool = True
    temperature_lr: float = 5e-5
    token_lr: float = 1e-3
    momentum: float = 0.9
    warmup_lr: float = 5e-7
    schedule_epochs: float = 60
    keep_unlabelled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("stage 'ram'", temperature_lr=self.temperature_lr, token_lr=self.token_lr)
        check_positive("stage 'ram'", schedule_epochs=self.schedule_epochs)
        check_not_negative("stage 'ram'", momentum=self.momentum, warmup_lr=self.warmup_lr)

    @property
    def adapter(self) -> RAMLadder:
        """The ladder."""
        return RAMLadder(self.num_layers, self.num_tokens, self.path_layers, self.kernel_size, self.float16_tokens)

    def parameter_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """Adapters, temperatures and tokens."""
        ladder = self.adapter
        tokens = [*ladder.tokens(parts.image_encoder), *parts.prompt.learned_parameters()]
        groups: list[dict[str, Any]] = [
            {"name": "adapters", "params": ladder.adapters(parts.image_encoder), "lr": self.lr},
            {"name": "temperatures", "params": parts.own_parameters(), "lr": self.temperature_lr},
            {"name": "tokens", "params": tokens, "lr": self.token_lr, "momentum": self.momentum},
        ]
        return [{**group, "weight_decay": self.weight_decay} for group in groups if group["params"]]

    def optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """AdamW, and SGD for the tokens."""
        return AdamWAndSGD(groups, lr=self.lr)

    def schedule(self, optimizer: Optimizer, steps: float, epochs: float) -> dict[str, Any]:
        """Warm-up and a part of a cosine, stepped per epoch."""
        ends = (self.schedule_epochs, self.warmup_epochs, self.warmup_lr, self.min_lr)
        return {"scheduler": epoch_cosine_schedule(optimizer, *ends), "interval": "epoch"}
