"""Callbacks that end a run."""

import errno
import os
import signal

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


class Terminate(PowerCut):
    """Asks the run to end, as a cluster or `kill` does."""

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class FullDisk(PowerCut):
    """Finds no room."""

    def end(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere/last.ckpt")


def ended_by(callback: type[PowerCut], stage: str, epoch: int) -> list[str]:
    """Arguments of `ovml fit` that end it there."""
    option = "--trainer.callbacks"
    return [f"{option}+", f"stopper.{callback.__name__}", f"{option}.stage", stage, f"{option}.epoch", str(epoch)]
