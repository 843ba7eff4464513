"""The base class of all data modules."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property, partial
from typing import Any, Literal

import datasets
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from ovml.data.features import FeatureRows, FeatureStore
from ovml.data.plain import PlainRow, plain_dataset
from ovml.data.ram_augmentation import Augmentation
from ovml.data.rand_augment import RandAugment
from ovml.data.rows import OnBroken, RowReader, TensorRows, TensorStream, Transform, collate
from ovml.data.samplers import EvalSampler, TrainSampler
from ovml.data.transforms import TrainTransform
from ovml.data.workers import choose_workers
from ovml.encoders.checkpoints import DEFAULT, load_image_processor
from ovml.encoders.image_processor import ImageProcessor
from ovml.utils.errors import UserError, check_share, check_whole
from ovml.vocabulary import LabelVocabulary

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]


class MultiLabelDataModule(pl.LightningDataModule):
    """Multi-label images. A subclass gives a vocabulary and the rows of each split.

    Rows are plain dicts (`ovml.data.plain.PlainRow`), or for sets too large for that a `datasets.Dataset` with the
    columns `image` (`datasets.Image`), `positive` and `negative` (lists of label ids, which are columns of the
    vocabulary) and `image_id`, or a stream of such rows (`datasets.IterableDataset`). Batches are dicts:
    `pixel_values [B, 3, H, W]` uint8, which the model normalizes on its device, `labels [B, L]` int8 (1 present, 0
    absent, -1 unknown), `image_id`, a list of strings, and `row`, a list of the rows' numbers.

    With several processes each evaluation image still counts once. A training image that cannot be read is logged once,
    counted in `broken` and replaced by another one; in evaluation it raises an error that names it.

    Args:
        clip: Checkpoint whose image processor prepares images where no trainer brings a model with its own.
        batch_size: Images per training batch and process.
        eval_batch_size: Images per evaluation batch. Default: `batch_size`, also where that changes later.
        num_workers: Processes per data loader that read images; they live as long as the loader. Default: by the
            machine and the split; see `ovml.data.workers.choose_workers`.
        augment: Random resized crop and flip in training.
        crop_scale: Minimum and maximum share of the image area that a training crop covers; `None` for whole images,
            resized and cropped as in evaluation.
        flip: Probability of a horizontal flip in training.
        cutout: Side of a square of one random color in training images, as a share of theirs; 0 for none.
        rand_augment: Random operations on the training crops; the MKT paper uses `ovml.data.RandAugment`.
        augmentation: Takes the place of crop, flip, `cutout` and `rand_augment` in training; RAM uses
            `ovml.data.RAMAugmentation`.
        reshuffle: Whether each epoch has an order of its own; otherwise all have that of the first. A streamed split
            is always shuffled anew.
        drop_last: Whether the last batch of an epoch is left out where it is smaller than the others.
        skip_broken: Skip evaluation images that cannot be read, with a warning that names them.
        seed: Seed of the order and the augmentation of the training images. Default: the seed of
            `lightning.pytorch.seed_everything`, which the command line calls, or 0.

    Raises:
        UserError: An argument is out of range.

    Example:
        >>> from PIL import Image
        >>> class TwoImages(MultiLabelDataModule):
        ...     vocabulary = LabelVocabulary(seen=("cat", "dog"), unseen=("black cat",))
        ...     def dataset(self, split):
        ...         image = Image.new("RGB", (80, 80))
        ...         return [{"image": image, "positive": ["cat", "black cat"]}, {"image": image, "positive": []}]
        >>> batch = next(iter(TwoImages("ovml-demo", batch_size=2).test_dataloader()))
        >>> batch["labels"].tolist(), batch["pixel_values"].shape
        ([[1, 0, 1], [0, 0, 0]], torch.Size([2, 3, 96, 96]))
    """

    exhaustive: bool = True
    """Whether labels that a row does not list are absent; otherwise they are unknown."""
    shuffle_buffer: int = 1000
    """Size of the shuffle buffer of a streamed training split, in rows."""
    allow_urls: bool = False
    """Whether images may be addresses on servers, which are asked for them."""
    quick_rows: bool = False
    """Whether images are so small that reading them takes less time than handing them over between processes."""
    stage_batch_size: int | None = None
    """Images per training batch and process in a stage that sets its own; a training writes it."""
    streamed_rows: int | None = None
    """Number of rows of a streamed training split: the length of an epoch."""

    def __init__(
        self,
        clip: str = DEFAULT,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        augment: bool = True,
        crop_scale: tuple[float, float] | None = (0.08, 1.0),
        flip: float = 0.5,
        cutout: float = 0.0,
        rand_augment: RandAugment | None = None,
        augmentation: Augmentation | None = None,
        reshuffle: bool = True,
        drop_last: bool = False,
        skip_broken: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_whole(self, 1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_whole(self, 0, num_workers=num_workers, seed=seed)
        check_share(self, flip=flip, cutout=cutout)
        smallest, largest = crop_scale or (1, 1)
        if not 0 < smallest <= largest <= 1:
            raise UserError(
                f"{type(self).__name__}: crop_scale must be two shares of the image area above 0 and up to 1, the "
                f"smaller one first; got {crop_scale}"
            )
        for option, given in (("rand_augment", rand_augment is not None), ("cutout", cutout > 0)):
            if given and not augment:
                raise UserError(f"data.{option} needs augmentation, which data.augment false turns off; remove one")
            if given and augmentation is not None:
                raise UserError(f"data.augmentation: data.{option} does not go with it; remove one")
        if augmentation is not None and not augment:
            raise UserError("data.augmentation: data.augment false does not go with it; remove one")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self._asked_workers = num_workers
        self.skip_broken = skip_broken
        self.broken: set[str] = set()
        self.feature_stores: dict[Split, FeatureStore] = {}
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.clip = clip
        self.augment = augment
        self.crop_scale = crop_scale
        self.flip = flip
        self.cutout = cutout
        self.rand_augment = rand_augment
        self.augmentation = augmentation
        self.reshuffle = reshuffle
        self.drop_last = drop_last

    def __str__(self) -> str:
        """The class alone: Lightning's own makes all data loaders, also for an error about the data."""
        return f"<{type(self).__name__}>"

    @property
    def image_processor(self) -> ImageProcessor:
        """How images are resized, cropped and normalized: as the model of the attached trainer does it.

        Without a trainer the checkpoint `clip` is asked.
        """
        model = getattr(getattr(self.trainer, "lightning_module", None), "model", None)
        return getattr(model, "image_processor", None) or self._own_processor

    @cached_property
    def _own_processor(self) -> ImageProcessor:
        return load_image_processor(self.clip)

    @property
    def eval_transform(self) -> Transform:
        """From image to bytes in evaluation."""
        return self.image_processor.pixels

    @property
    def train_transform(self) -> Transform:
        """From image to bytes in training; an `augmentation` may give normalized floats."""
        if not self.augment:
            return self.eval_transform
        if self.augmentation is not None:
            return partial(self.augmentation, processor=self.image_processor)
        return TrainTransform(
            self.image_processor, self.crop_scale, flip=self.flip, rand_augment=self.rand_augment, cutout=self.cutout
        )

    @property
    @abstractmethod
    def vocabulary(self) -> LabelVocabulary:
        """The labels, seen ones first."""

    @abstractmethod
    def dataset(self, split: Split) -> datasets.Dataset | datasets.IterableDataset | Iterable[PlainRow]:
        """Rows of one split.

        Raises:
            UserError: The split is not there, or is empty.
        """

    def rows_of(self, split: Split) -> datasets.Dataset | datasets.IterableDataset:
        """Rows of one split, plain dicts as a data set in memory.

        Raises:
            UserError: As for `dataset`, or a plain row is malformed.
        """
        rows = self.dataset(split)
        if isinstance(rows, (datasets.Dataset, datasets.IterableDataset)):
            return rows
        return plain_dataset(rows, self.vocabulary, f"{type(self).__name__}: {split} split")

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; the order depends on the seed and the epoch only, so a resumed run repeats it."""
        return self._loader("train", self.train_transform, self.stage_batch_size or self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation images in order."""
        return self._loader("validation", self.eval_transform, self.eval_batch_size or self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test images in order."""
        return self._loader("test", self.eval_transform, self.eval_batch_size or self.batch_size)

    predict_dataloader = test_dataloader

    @property
    def num_workers(self) -> int:
        """Number of processes that was asked for, 0 if none was; `workers_for` chooses then."""
        return self._asked_workers or 0

    def workers_for(self, rows: Any, quick: bool = False) -> int:
        """Number of processes that read the rows of a split; by default none where rows are `quick` to read."""
        if self._asked_workers is not None:
            return self._asked_workers
        if quick or self.quick_rows:
            return 0
        batch_bytes = 3 * self.batch_size * self.image_processor.size**2
        return choose_workers(rows, getattr(self.trainer, "num_devices", 1), batch_bytes)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Log every broken image once."""
        for message in batch.pop("broken", ()):
            if message not in self.broken:
                self.broken.add(message)
                training = bool(self.trainer and self.trainer.training)
                logger.warning("%s (%s)", message, "replaced by another image" if training else "skipped")
        return batch

    @property
    def _device_type(self) -> str:
        """Where batches go: to the trainer's device, or to the one that a trainer would take."""
        strategy = getattr(self.trainer, "strategy", None)
        return strategy.root_device.type if strategy else "cuda" if torch.cuda.is_available() else "cpu"

    def _loader(self, split: Split, transform: Transform, batch_size: int) -> DataLoader[Any]:
        rows = self.rows_of(split)
        training = split == "train"
        reader = RowReader(transform, len(self.vocabulary), self.exhaustive, self.seed, self.allow_urls)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        on_broken: OnBroken = "replace" if training else "skip" if self.skip_broken else "raise"
        epoch = getattr(self.trainer, "current_epoch", 0) if training else 0
        workers = self.workers_for(rows, quick=split in self.feature_stores)
        source: TensorRows | TensorStream
        sampler = None
        if hasattr(rows, "select"):
            store = self.feature_stores.get(split)
            source = FeatureRows(rows, store, reader) if store else TensorRows(rows, reader, on_broken)
            sampler = (
                TrainSampler(source, world_size, rank, shuffle=True, seed=self.seed, reshuffle=self.reshuffle)
                if training
                else EvalSampler(source, world_size, rank)
            )
            sampler.set_epoch(epoch)  # of a resumed run: worker processes ask for rows before Lightning sets it
        else:
            if training and not self.streamed_rows:
                raise UserError(
                    "the training split is streamed and its number of rows is not known, so an epoch has no length; "
                    "give it (streamed_rows=N)"
                )
            source = TensorStream(
                rows,
                reader,
                on_broken,
                rank,
                world_size,
                buffer_size=self.shuffle_buffer if training else 0,
                epoch_size=(self.streamed_rows or 0) // world_size if training else None,
            )
            source.set_epoch(epoch)
        loader = DataLoader(
            source,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
            drop_last=training and self.drop_last,
            generator=torch.Generator(),  # of its own, so that making a loader leaves the global one alone
            pin_memory=self._device_type == "cuda",  # so that Lightning copies batches while the device computes
        )
        if training and isinstance(source, TensorStream):  # Lightning tells the epoch to the sampler alone
            loader.sampler.set_epoch = source.set_epoch  # type: ignore[attr-defined]
        return loader
