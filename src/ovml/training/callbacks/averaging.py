"""An average of the weights over training."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ovml.training.distributed import cuts_models
from ovml.utils.errors import UserError


class LearnedEMA(Callback):
    """An exponential moving average of the weights that learn, used in a stage's validation, checkpoint and result.

    The average of each weight starts as the weight and becomes `decay * average + (1 - decay) * weight` with every
    optimizer step. Statistics of batch norms that learn are averaged likewise. A resumed run equals an uninterrupted
    one.

    Lightning's own `EMAWeightAveraging` averages the frozen CLIP and its teacher too, saves both in every checkpoint,
    and does not resume from checkpoints of `ovml fit`.

    Args:
        decay: Weight of the old average in a step, from 0 to below 1.
        each_epoch: Restart the average in each epoch, as the published code of RAM (CVPR 2025) does, rather than in
            each stage.
        copied: Weights that are copied rather than averaged, by their names in a checkpoint: RAM's published code
            copies the temperature of the global logits, `model.head.tau_global`.

    Raises:
        UserError: `decay` is out of its range; or, when training starts, a name in `copied` is none of the model's, or
            the strategy shards the model.

    Example:
        `ovml fit --config demo.yaml --trainer.callbacks+ LearnedEMA --trainer.callbacks.decay 0.99`
    """

    def __init__(self, decay: float = 0.999, each_epoch: bool = False, copied: list[str] | None = None) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"LearnedEMA: decay must be at least 0 and below 1; got {decay}")
        self.decay, self.each_epoch, self.copied = decay, each_epoch, copied or []
        self._update = get_ema_multi_avg_fn(decay)
        self._hook: Any = None
        self._learning: dict[str, Tensor] = {}
        self._average: list[Tensor] = []  # of the same order; empty outside of training
        self._resumed: list[Tensor] = []  # weights of a checkpoint, until training starts

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find what learns in this stage; forget what an earlier call of the trainer left."""
        self._learning, self._average, self._resumed = {}, [], []
        self.teardown(trainer, pl_module, stage)
        if stage == "fit":
            if cuts_models(trainer.strategy):
                raise UserError("LearnedEMA: cannot average a model in shards; take --trainer.strategy ddp")
            self._learning = _learning_state(pl_module)
            if unknown := sorted(set(self.copied) - {name for name, _ in pl_module.named_parameters()}):
                raise UserError(
                    f"LearnedEMA: copied: the model has no weight {unknown[0]!r}; take it from a checkpoint"
                )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the average from the model, whose weights are those of the checkpoint, if it had any."""
        self._average = [p.detach().clone() for p in self._weights]
        for weight, resumed in zip(self._weights, self._resumed or self._average, strict=True):
            weight.copy_(resumed)
        self._last_step = trainer.global_step
        # Not Lightning's `on_save_checkpoint`, which is passed over where a checkpoint holds weights only.
        put_average = partial(self._put_average)  # torch marks the hook, which a method does not let it do
        self._hook = pl_module.register_state_dict_post_hook(put_average)  # type: ignore[no-untyped-call]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the average, with `each_epoch`."""
        if self.each_epoch:
            for average, weight in zip(self._average, self._weights, strict=True):
                average.copy_(weight)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Add the weights of an optimizer step; a batch without one adds nothing."""
        if trainer.global_step > self._last_step:
            self._update(self._average, self._weights, 0)
            for name, average, weight in zip(self._learning, self._average, self._weights, strict=True):
                if name in self.copied:
                    average.copy_(weight)
            self._last_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average into the model."""
        self._exchange()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the weights back."""
        self._exchange()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the model."""
        self._exchange()
        self._average = []

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let `state_dict` of the model be its weights again."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def state_dict(self) -> dict[str, Any]:
        """The weights, whose place in a checkpoint the average takes."""
        return {"weights": dict(zip(self._learning, self._weights, strict=True))} if self._average else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the weights until training starts: the model has the average, the result if nothing is left to train."""
        if self._learning and state_dict:
            self._resumed = [state_dict["weights"][name] for name in self._learning]

    def _put_average(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
        """Put the average in the place of the weights of a state."""
        if self._average:
            state.update(zip((prefix + name for name in self._learning), self._average, strict=True))

    @property
    def _weights(self) -> list[Tensor]:
        return [p.detach() for p in self._learning.values()]

    def _exchange(self) -> None:
        if self._average:  # not before training, for Lightning's check of the validation
            for average, weight in zip(self._average, self._weights, strict=True):
                kept = weight.clone()
                weight.copy_(average)
                average.copy_(kept)


def _learning_state(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module that learn, and the statistics of batch norms that learn, by name."""
    state: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for prefix, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.training:
            named = ((f"{prefix}.{name}", value) for name, value in layer.named_buffers(recurse=False))
            state |= {name: value for name, value in named if value.is_floating_point()}
    return state
