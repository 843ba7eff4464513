"""The images of an optimizer step, divided among devices and accumulated batches."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning.pytorch.callbacks import BatchSizeFinder

from ovml.training.stages import Stage
from ovml.utils.errors import UserError


class StepBatches(NamedTuple):
    """How the images of an optimizer step are divided.

    Attributes:
        devices: Number of devices.
        images: Images of a batch on a device.
        accumulated: Batches of each device in a step.
    """

    devices: int
    images: int
    accumulated: int


def divide(total: int, devices: int, most: int) -> StepBatches | None:
    """Divide the images of a step into the fewest batches of at most `most` images; `None` where devices do not divide.

    >>> divide(512, devices=8, most=64), divide(512, devices=1, most=64), divide(64, devices=2, most=24)
    (StepBatches(devices=8, images=64, accumulated=1), StepBatches(devices=1, images=64, accumulated=8), \
StepBatches(devices=2, images=16, accumulated=2))
    """
    if total % devices:
        return None
    own = total // devices
    number = next(n for n in range(1, own + 1) if own % n == 0 and own // n <= most)
    return StepBatches(devices, own // number, number)


def step_batches(stage: Stage, trainer: Any, data: Any) -> StepBatches | None:
    """How a stage's `batch_size` is divided; `None` for a stage without one.

    Args:
        stage: The stage.
        trainer: Lightning's trainer, with its devices.
        data: The data module; its `batch_size` is the most that a device takes at once.

    Raises:
        UserError: The devices do not divide it, or something else sets the batch size too.
    """
    if stage.batch_size is None:
        return None
    where = f"stage {stage.name!r}: batch_size {stage.batch_size}"
    if not hasattr(data, "stage_batch_size"):
        raise UserError(f"{where} needs a data module of ovml, such as FolderDataModule; leave it out")
    if (own := _own_accumulation(trainer)) != 1:
        raise UserError(
            f"trainer.accumulate_grad_batches {own}: {where} accumulates by itself; leave one of the two out"
        )
    if any(isinstance(callback, BatchSizeFinder) for callback in trainer.callbacks):
        raise UserError(f"BatchSizeFinder: {where} is that of a step; leave one of the two out")
    found = divide(stage.batch_size, trainer.num_devices * trainer.num_nodes, data.batch_size)
    if found is None:
        devices = trainer.num_devices * trainer.num_nodes
        raise UserError(f"{where} cannot be divided among {devices} devices; take a number of them that divides it")
    return found


def set_batches(stage: Stage, trainer: Any) -> None:
    """Let a trainer and its data follow a stage's `batch_size`, or the data's own for a stage without one.

    Raises:
        UserError: See `step_batches`.
    """
    batches = step_batches(stage, trainer, trainer.datamodule)
    if hasattr(trainer.datamodule, "stage_batch_size"):
        trainer.datamodule.stage_batch_size = None if batches is None else batches.images
    own = _own_accumulation(trainer)
    trainer.ovml_accumulation = own  # a trainer may fit another stage after this one
    trainer.accumulate_grad_batches = own if batches is None else batches.accumulated


def _own_accumulation(trainer: Any) -> int:
    """How many batches the trainer accumulates by its own setting."""
    return int(getattr(trainer, "ovml_accumulation", trainer.accumulate_grad_batches))
