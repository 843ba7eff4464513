"""The progress bar of `ovml fit` and `ovml.fit`."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar

PER_SECOND = 2
"""How often the bar is drawn."""
LOSS = "train/loss"
"""The metric of a training step that is shown."""


def reads_each_step(trainer: pl.Trainer) -> bool:
    """Whether a trainer has a progress bar that shows only what is logged for it, and waits for it at each step."""
    return not isinstance(getattr(trainer, "progress_bar_callback", None), SlowProgressBar | None)


class SlowProgressBar(RichProgressBar):
    """A rich progress bar that is drawn, and asks for metrics, twice a second rather than at each step.

    To show a metric the host waits until the device has computed it. So the loss is not among the metrics of the bar
    that Lightning reads at each step; this one looks it up among all.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=PER_SECOND)
        self._shown: dict[str, Any] = {}
        self._asked = -1.0

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """All but the run's version, which is part of the path; in training those of up to half a second ago."""
        if not (trainer.training and time.monotonic() - self._asked < 1 / PER_SECOND):
            found = super().get_metrics(trainer, pl_module)
            self._shown = {name: value for name, value in found.items() if name != "v_num"}
            if LOSS in trainer.callback_metrics and LOSS not in found:
                self._shown = {LOSS: float(trainer.callback_metrics[LOSS]), **self._shown}
            self._asked = time.monotonic()
        return self._shown

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the metrics of the last step."""
        self._asked = -1.0
        super().on_train_epoch_end(trainer, pl_module)
