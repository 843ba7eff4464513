"""What a training step uses of a batch, counted on the CPU before the batch goes to its device."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from ovml.training.stages import Stage


class StepRows:
    """The images and labels of a step. It holds numbers and CPU tensors, so nobody waits for the device.

    Not a tuple or a dataclass, whose tensors Lightning would move to the device.

    Attributes:
        size: Number of images in the batch.
        images: Number of images that take part.
        taught: Number of images that count as taught by labels.
        kept: Positions of the images that take part `[images]`; `None` for all.
        columns: Seen labels that the step ranks, ascending; `None` for all.
    """

    def __init__(self, labels: Tensor, stage: Stage) -> None:
        """Count.

        Args:
            labels: Targets `[B, S]` of the seen labels; best on the CPU, because their values are read.
            stage: The stage that learns.
        """
        present = (labels == 1).cpu()
        labelled = present.any(dim=1)
        with_labels = int(labelled.sum())
        self.size = len(labelled)
        self.images = self.size if stage.keep_unlabelled else with_labels
        self.taught = self.images if stage.keep_unlabelled and with_labels else with_labels
        self.kept = None if self.images == self.size else labelled.nonzero().squeeze(1)
        self.columns: Tensor | None = None
        if stage.labels_per_step is not None and stage.labels_per_step < present.shape[1]:
            self.columns = drawn_labels(present, stage.labels_per_step, stage.keeps_present)

    def select(self, values: Tensor) -> Tensor:
        """The rows `[images, ...]` of a tensor `[B, ...]` that take part."""
        return values if self.kept is None else values[self.kept.to(values.device, non_blocking=True)]


def changes_batches(module: LightningModule, datamodule: LightningDataModule | None) -> bool:
    """Whether hooks of the user's may change a batch on the device, so that nothing can be counted before."""
    return any(
        owner is not None and is_overridden(hook, owner, parent)
        for owner, parent in ((module, LightningModule), (datamodule, LightningDataModule))
        for hook in ("on_after_batch_transfer", "transfer_batch_to_device")
    )


def drawn_labels(present: Tensor, number: int, keeps_present: bool) -> Tensor:
    """Labels of a step, drawn at random on the CPU; ascending.

    Args:
        present: Whether each label is present in each image `[B, S]`.
        number: How many are drawn; more if more are present and kept.
        keeps_present: Whether all that are present in an image are among them.
    """
    first = present.any(dim=0) & keeps_present
    # A random order with the batch's present labels first, if the stage keeps them.
    order = (torch.rand(len(first)) + first).argsort(descending=True)
    return order[: max(number, int(first.sum()))].sort().values
