"""Callbacks that end a run."""

import os

from lightning.pytorch.callbacks import Callback


class PowerCut(Callback):
    """Dies without warning in the given stage, epoch and batch."""

    def __init__(self, stage: str, epoch: int, batch: int = 1) -> None:
        self.stage, self.epoch, self.batch = stage, epoch, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (pl_module.stage.name, trainer.current_epoch, batch_idx) == (self.stage, self.epoch, self.batch):
            self.end()

    def end(self) -> None:
        os._exit(9)


class ControlC(PowerCut):
    """Interrupts the run, as a person at the keyboard does."""

    def end(self) -> None:
        raise KeyboardInterrupt
