"""The base class of all data modules."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import numpy as np
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
        seed: Seed of the order and the augmentation of the training images. Default: that of
            `lightning.pytorch.seed_everything`, which the command line calls, else 0.
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
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size must be at least 1; got {batch_size}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
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
        rows = TensorRows(self.dataset(split), transform, len(self.vocabulary), self.exhaustive, self.seed)
        trainer = self.trainer
        sampler = EpochSampler(
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
            generator=torch.Generator(),  # of its own, so that making a loader leaves the global one alone
            pin_memory=torch.cuda.is_available(),
        )


class EpochSampler(DistributedSampler[Any]):
    """Draws `(epoch, index)`, so that a row's augmentation can depend on the epoch."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


class TensorRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of a data set as tensors.

    What a transform draws for a row depends on (seed, epoch, row) alone: not on the number of workers, not on the
    order, and not on whether the run was interrupted.

    Args:
        rows: With columns `image`, `positive`, `negative` and `image_id`.
        transform: From RGB image to pixel values `[3, H, W]`; its random numbers are torch's.
        num_labels: Size of the vocabulary.
        exhaustive: Whether labels not listed are absent (0) or unknown (-1).
        seed: Seed of the transform's random numbers.
    """

    def __init__(
        self,
        rows: Dataset,
        transform: Callable[[Image.Image], Tensor],
        num_labels: int,
        exhaustive: bool,
        seed: int = 0,
    ) -> None:
        self.rows = rows
        self.transform = transform
        self.num_labels = num_labels
        self.exhaustive = exhaustive
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """Read rows by `(epoch, index)`; called by the data loader with a whole batch."""
        columns = self.rows[[index for _, index in keys]]
        items = []
        with torch.random.fork_rng(devices=[]):
            for position, key in enumerate(keys):
                torch.manual_seed(int(np.random.SeedSequence([self.seed, *key]).generate_state(1)[0]))
                items.append(
                    {
                        "pixel_values": self.transform(load_image(columns["image"][position])),
                        "labels": self.targets(columns["positive"][position], columns["negative"][position]),
                        "image_id": columns["image_id"][position],
                    }
                )
        return items

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
