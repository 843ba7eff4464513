"""The base class of all data modules."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from ovml.data.features import FeatureRows, FeatureStore
from ovml.data.rand_augment import RandAugment
from ovml.data.rows import EvalSampler, OnBroken, RowReader, TensorRows, TensorStream, TrainSampler, Transform, collate
from ovml.data.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, TrainTransform
from ovml.encoders.checkpoints import DEFAULT, ImageSpec, load_image_spec
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]


class MultiLabelDataModule(pl.LightningDataModule):
    """Multi-label images through `datasets`. A subclass gives a vocabulary and a data set per split.

    Rows have the columns `image` (`datasets.Image`), `positive` and `negative` (lists of label ids, which are
    columns of the vocabulary) and `image_id`. Batches are dicts: `pixel_values [B, 3, H, W]`, `labels [B, L]` int8
    (1 present, 0 absent, -1 unknown) and `image_id`, a list of strings. A streamed set
    (`datasets.IterableDataset`) serves as well.

    Each picture of an evaluation set counts once, whatever the number of processes. A broken picture in training is
    named once in the log, counted in `broken`, and replaced by another; in evaluation it ends the run with its name.

    Args:
        clip: Checkpoint whose image size and normalisation are used (linked to `model.clip` on the command line).
        batch_size: Images per training batch and process.
        eval_batch_size: Images per evaluation batch. Default: `batch_size`.
        num_workers: Worker processes per data loader.
        augment: Random resized crop and flip in training.
        crop_scale: Least and greatest share of a picture's area that a training crop takes.
        rand_augment: Random operations on the training crops; `ovml.data.RandAugment` is the MKT paper's.
        resize: Short side in pixels before the centre crop in evaluation. Default: the crop's own size.
        normalization: `clip`: the checkpoint's own mean and standard deviation; `imagenet`: ImageNet's, as in the
            published MKT code.
        skip_broken: Leave pictures that cannot be read out of the evaluation, with a warning that names them.
        seed: Seed of the order and the augmentation of the training images. Default: that of
            `lightning.pytorch.seed_everything`, which the command line calls, else 0.

    Example:
        >>> import datasets
        >>> from PIL import Image
        >>> class TwoPictures(MultiLabelDataModule):
        ...     vocabulary = LabelVocabulary(seen=("cat", "dog"), unseen=("black cat",))
        ...     def dataset(self, split):
        ...         pictures = [Image.new("RGB", (80, 80)) for _ in range(2)]
        ...         rows = {"image": pictures, "positive": [[0, 2], []], "negative": [[], []], "image_id": ["a", "b"]}
        ...         return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        >>> batch = next(iter(TwoPictures("ovml-demo", batch_size=2).test_dataloader()))
        >>> batch["labels"].tolist(), batch["pixel_values"].shape
        ([[1, 0, 1], [0, 0, 0]], torch.Size([2, 3, 72, 72]))
    """

    exhaustive: bool = True
    """Whether a label that a row does not list is absent (else it is unknown)."""
    shuffle_buffer: int = 1000
    """Rows among which the shuffling of a streamed training split draws."""
    streamed_rows: int | None = None
    """Rows of the training split, where it is streamed: the length of an epoch."""

    def __init__(
        self,
        clip: str = DEFAULT,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        augment: bool = True,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        rand_augment: RandAugment | None = None,
        resize: int | None = None,
        normalization: Literal["clip", "imagenet"] = "clip",
        skip_broken: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size must be at least 1; got {batch_size}")
        if rand_augment is not None and not augment:
            raise UserError("data.rand_augment works on training crops, which data.augment false turns off; drop one")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.skip_broken = skip_broken
        self.broken: set[str] = set()
        self.feature_stores: dict[Split, FeatureStore] = {}
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.clip = clip
        self.augment = augment
        self.crop_scale = crop_scale
        self.rand_augment = rand_augment
        self.resize = resize
        self.normalization = normalization

    @cached_property
    def image_spec(self) -> ImageSpec:
        """Size, resize and normalisation of the pictures; the checkpoint is asked when they are first needed.

        Raises:
            UserError: `resize` does not go with the checkpoint.
        """
        spec = load_image_spec(self.clip)
        if self.resize is not None:
            if spec.squash or self.resize < spec.size:
                why = "takes whole pictures, nothing is cut" if spec.squash else f"cuts {spec.size} pixels from it"
                raise UserError(f"data.resize {self.resize}: {self.clip} {why}; give --data.resize null")
            spec = replace(spec, resize=self.resize if self.resize > spec.size else None)
        return replace(spec, mean=IMAGENET_MEAN, std=IMAGENET_STD) if self.normalization == "imagenet" else spec

    @cached_property
    def eval_transform(self) -> Transform:
        """From picture to pixel values in evaluation."""
        return EvalTransform(self.image_spec)

    @cached_property
    def train_transform(self) -> Transform:
        """From picture to pixel values in training."""
        if not self.augment:
            return self.eval_transform
        return TrainTransform(self.image_spec, scale=self.crop_scale, rand_augment=self.rand_augment)

    @property
    @abstractmethod
    def vocabulary(self) -> LabelVocabulary:
        """The labels, seen ones first."""

    @abstractmethod
    def dataset(self, split: Split) -> datasets.Dataset | datasets.IterableDataset:
        """Rows of one split; label ids index the vocabulary.

        Raises:
            UserError: The split is not there, or is empty.
        """

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; the order depends on seed and epoch alone, so that a resumed run repeats it."""
        return self._loader("train", self.train_transform, self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation images in order."""
        return self._loader("validation", self.eval_transform, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test images in order."""
        return self._loader("test", self.eval_transform, self.eval_batch_size)

    predict_dataloader = test_dataloader

    def _streamed_rows(self) -> int:
        if not self.streamed_rows:
            raise UserError(
                "the training split is streamed and its number of rows is not known, so an epoch has no length; "
                "say it (--data.streamed_rows N)"
            )
        return self.streamed_rows

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Log every broken picture once."""
        for message in batch.pop("broken", ()):
            if message not in self.broken:
                self.broken.add(message)
                training = bool(self.trainer and self.trainer.training)
                logger.warning("%s (%s)", message, "replaced by another picture" if training else "left out")
        return batch

    def _loader(self, split: Split, transform: Transform, batch_size: int) -> DataLoader[Any]:
        rows = self.dataset(split)
        training = split == "train"
        reader = RowReader(transform, len(self.vocabulary), self.exhaustive, self.seed)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        on_broken: OnBroken = "replace" if training else "skip" if self.skip_broken else "raise"
        source: TensorRows | TensorStream | FeatureRows
        sampler = None
        if hasattr(rows, "select"):
            store = self.feature_stores.get(split)
            source = FeatureRows(rows, store, reader) if store else TensorRows(rows, reader, on_broken)
            sampler = (
                TrainSampler(source, world_size, rank, shuffle=True, seed=self.seed)
                if training
                else EvalSampler(source, world_size, rank)
            )
        else:
            source = TensorStream(
                rows,
                reader,
                on_broken,
                rank,
                world_size,
                buffer_size=self.shuffle_buffer if training else 0,
                epoch_size=self._streamed_rows() // world_size if training else None,
            )
        loader = DataLoader(
            source,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            generator=torch.Generator(),  # of its own, so that making a loader leaves the global one alone
            pin_memory=torch.cuda.is_available(),
        )
        if training and isinstance(source, TensorStream):  # Lightning tells the epoch to the sampler alone
            loader.sampler.set_epoch = source.set_epoch  # type: ignore[attr-defined]
        return loader
