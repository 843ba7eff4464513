"""The base class of all data modules."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ovml.checkpoints import DEFAULT, ImageSpec, load_image_spec
from ovml.data.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, TrainTransform
from ovml.errors import UserError
from ovml.images import load_image
from ovml.vocabulary import LabelVocabulary

if TYPE_CHECKING:
    from datasets import Dataset

Split = Literal["train", "validation", "test"]


class MultiLabelDataModule(pl.LightningDataModule):
    """Multi-label images through `datasets`. A subclass gives a vocabulary and a data set per split.

    Rows have the columns `image` (`datasets.Image`), `positive` and `negative` (lists of label ids, which are
    columns of the vocabulary) and `image_id`. Batches are dicts: `pixel_values [B, 3, H, W]`, `labels [B, L]` int8
    (1 present, 0 absent, -1 unknown) and `image_id`, a list of strings.

    Args:
        clip: Checkpoint whose image size and normalisation are used (linked to `model.clip` on the command line).
        batch_size: Images per training batch and process.
        eval_batch_size: Images per evaluation batch. Default: `batch_size`.
        num_workers: Worker processes per data loader.
        augment: Random resized crop and flip in training.
        crop_scale: Least and greatest share of a picture's area that a training crop takes.
        resize: Short side in pixels before the centre crop in evaluation. Default: the crop's own size.
        normalization: `clip`: the checkpoint's own mean and standard deviation; `imagenet`: ImageNet's, as in the
            published MKT code.
        seed: Seed of the order of the training images.
    """

    exhaustive: bool = True
    """Whether a label that a row does not list is absent (else it is unknown)."""

    def __init__(
        self,
        clip: str = DEFAULT,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        augment: bool = True,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        resize: int | None = None,
        normalization: Literal["clip", "imagenet"] = "clip",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size must be at least 1; got {batch_size}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        spec = load_image_spec(clip)
        if normalization == "imagenet":
            spec = ImageSpec(spec.size, IMAGENET_MEAN, IMAGENET_STD)
        self.eval_transform = EvalTransform(spec, resize)
        self.train_transform = TrainTransform(spec, scale=crop_scale) if augment else self.eval_transform

    @property
    @abstractmethod
    def vocabulary(self) -> LabelVocabulary:
        """The labels, seen ones first."""

    @abstractmethod
    def dataset(self, split: Split) -> Dataset:
        """Rows of one split; label ids index the vocabulary."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; the order depends on seed and epoch alone, so that a resumed run repeats it."""
        return self._loader("train", self.train_transform, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation images in order."""
        return self._loader("validation", self.eval_transform, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test images in order."""
        return self._loader("test", self.eval_transform, self.eval_batch_size)

    predict_dataloader = test_dataloader

    def _loader(
        self, split: Split, transform: Callable[[Image.Image], Tensor], batch_size: int, shuffle: bool = False
    ) -> DataLoader[Any]:
        rows = self.dataset(split).with_transform(ToTensors(transform, len(self.vocabulary), self.exhaustive))
        trainer = self.trainer
        sampler = DistributedSampler(
            rows,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            shuffle=shuffle,
            seed=self.seed,
        )
        return DataLoader(
            rows,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
        )


class ToTensors:
    """Turns rows of a data set into tensors, image by image, as they are read.

    Args:
        transform: From RGB image to pixel values `[3, H, W]`.
        num_labels: Size of the vocabulary.
        exhaustive: Whether labels not listed are absent (0) or unknown (-1).
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], num_labels: int, exhaustive: bool) -> None:
        self.transform = transform
        self.num_labels = num_labels
        self.exhaustive = exhaustive

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Map columns of rows to columns of `pixel_values`, `labels` and `image_id`."""
        return {
            "pixel_values": [self.transform(load_image(image)) for image in rows["image"]],
            "labels": [self.targets(p, n) for p, n in zip(rows["positive"], rows["negative"], strict=True)],
            "image_id": rows["image_id"],
        }

    def targets(self, positive: Sequence[int], negative: Sequence[int]) -> Tensor:
        """Dense targets `[L]` int8 of sparse label ids."""
        targets = torch.full((self.num_labels,), 0 if self.exhaustive else -1, dtype=torch.int8)
        targets[torch.as_tensor(negative, dtype=torch.long)] = 0
        targets[torch.as_tensor(positive, dtype=torch.long)] = 1
        return targets


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack rows into a batch."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.stack([row["labels"] for row in rows]),
        "image_id": [row["image_id"] for row in rows],
    }
