"""A callback that keeps the features of a frozen image tower on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from ovml.data.base import MultiLabelDataModule, Split
from ovml.data.cache import cache_path, cached_folder, damaged_file
from ovml.data.features import FeatureStore, check_room, file_name, file_rows, write_features
from ovml.data.rows import RowReader, TensorRows, collate
from ovml.training.shared_work import SharedWork
from ovml.utils.errors import UserError
from ovml.utils.progress import track
from ovml.utils.tensors import digest


class FeatureCache(Callback):
    """Runs the image tower once over each split in stages that freeze it (`PromptStage`, `HeadStage`).

    The features are memory-mapped files, keyed by the tower's weights, the rows and the transform, and serve all epochs
    and later runs. Features of validation images are always kept, those of training images only without augmentation
    (`--data.augment false`), because a random crop has features of its own. Stages that change the tower run as usual,
    and so do those whose head or distillation learns from the original's features, and towers whose patch embeddings
    depend on the labels (`RAMLadder`).

    Every process computes its share, which the others read: over all machines where they see the same cache folder,
    otherwise on each machine for itself. Files that an interrupted run completed within a day are not computed again,
    also by another number of processes. An image takes `(1 + patches) * dimensions * 4` bytes: 0.4 MB with ViT-B/16.

    Args:
        cache_dir: See `ovml.data.cache.cache_root`.
        dtype: `float16` halves the size and rounds the features.

    Example:
        `ovml fit --config demo.yaml --data.augment false --trainer.callbacks+ ovml.training.callbacks.FeatureCache`
    """

    def __init__(self, cache_dir: str | None = None, dtype: Literal["float32", "float16"] = "float32") -> None:
        self.cache_dir = cache_dir
        self.dtype = dtype

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compute missing features, before the data loaders are made."""
        if stage != "fit":
            return
        model: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, MultiLabelDataModule):
            raise UserError(
                "FeatureCache: needs a data module of ovml, which numbers its rows; give one instead of data loaders "
                "(trainer.fit(model, datamodule=data)), or remove the callback"
            )
        data.feature_stores = {}
        if model.model.image_encoder.local_path is not None:
            return  # patch embeddings depend on the labels
        if model.stage.num_layers or any(p.requires_grad for p in model.model.image_encoder.parameters()):
            return
        if model.stage.distil and (model.model.head.uses_teacher or list(model.objective.distillation.parameters())):
            return  # features of the original tower are needed too, and are not kept
        splits: tuple[Split, ...] = ("validation",) if data.augment else ("train", "validation")
        encoder = model.model.image_encoder
        weights = digest(repr(encoder.patch_source), encoder.state_dict())
        for split in splits:
            if hasattr(data.rows_of(split), "select"):  # a stream has no rows to number
                data.feature_stores[split] = self._store(trainer, split, weights)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the data module read images again."""
        if isinstance(data := trainer.datamodule, MultiLabelDataModule):  # type: ignore[attr-defined]
            data.feature_stores = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let the data module read images again."""
        self.on_fit_end(trainer, pl_module)

    def _store(self, trainer: pl.Trainer, split: Split, weights: str) -> FeatureStore:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        rows = data.rows_of(split)
        settings = {
            "weights": weights,
            "rows": rows._fingerprint,
            "size": len(rows),
            "image": vars(data.image_processor),
            "dtype": self.dtype,
            "precision": trainer.precision,
        }
        name = f"features-{split}"
        with SharedWork() as work:
            if any(other != settings for other in work.exchange(settings)):
                raise UserError(
                    "FeatureCache: the processes have different weights, rows or settings; give all the same seed "
                    "(--seed_everything), or remove the callback"
                )
            folder = cache_path(self.cache_dir, name, [], settings)
            node, number, size = _sharers(trainer, folder.parent, work)
            # Only one process looks: on network file systems the others would remember that the folder is missing.
            found = work.exchange((node, folder.is_dir() and damaged_file(folder) is None) if number == 0 else None)
            if (node, True) not in found:
                # Named as what an interrupted process leaves behind, and removed with that when it is a day old.
                beside = folder.with_name(f".{folder.name}.part-shared")
                beside.mkdir(parents=True, exist_ok=True)
                os.utime(beside)
                files = {beside / file_name(i): own for i, own in enumerate(file_rows(len(rows)))}
                own = {path: files[path] for path in list(files)[number::size] if not path.exists()}
                self._compute(trainer, rows, own, size, work, number == 0)
                work.wait()
                if number == 0:
                    with cached_folder(self.cache_dir, name, [], settings) as (_, aside):
                        if aside is not None:
                            for path in files:
                                path.rename(aside / path.name)
                    shutil.rmtree(beside, ignore_errors=True)
        return FeatureStore(folder)

    def _compute(
        self, trainer: pl.Trainer, rows: Any, files: dict[Path, range], size: int, work: SharedWork, is_first: bool
    ) -> None:
        """Run the tower over the rows of each file, in order; a broken image raises an error that names it."""
        if not files:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        model: Any = trainer.lightning_module.model
        reader = RowReader(data.eval_transform, len(data.vocabulary), data.exhaustive, allow_urls=data.allow_urls)
        batch_size = data.eval_batch_size or data.batch_size
        batches = [list(own[i : i + batch_size]) for own in files.values() for i in range(0, len(own), batch_size)]
        loader: DataLoader[Any] = DataLoader(
            TensorRows(rows, reader), batch_sampler=batches, num_workers=data.workers_for(rows), collate_fn=collate
        )
        model.to(trainer.strategy.root_device)
        read = track(loader, "image features", total=len(batches)) if is_first else loader
        found = self._features(model, read, next(iter(files)).parent.parent, size * sum(map(len, files.values())), work)
        with torch.inference_mode(), trainer.precision_plugin.val_step_context():
            for path, own in files.items():
                write_features(path, len(own), found, self.dtype)

    def _features(
        self, model: Any, batches: Iterable[Any], folder: Path, num_rows: int, work: SharedWork
    ) -> Iterator[torch.Tensor]:
        """Yield the features of batches, `[B, 1+P, D]`."""
        is_first = True
        for batch in batches:
            embeds = model.encode_images(batch["pixel_values"].to(model.device))
            features = torch.cat([embeds.global_embeds.unsqueeze(1), embeds.patch_embeds], dim=1)
            if is_first:
                check_room(folder, num_rows * features[0].numel() * np.dtype(self.dtype).itemsize)
                is_first = False
            yield features
            work.check()


def _sharers(trainer: pl.Trainer, root: Path, work: SharedWork) -> tuple[int, int, int]:
    """Those that see the same cache folder as this process: their number, its place among them, how many they are."""
    root.mkdir(parents=True, exist_ok=True)
    # A name that nobody has looked for, so that no network file system remembers that it is missing.
    mark = root / f".seen-by-{work.exchange(uuid4().hex)[0]}"
    if trainer.is_global_zero:
        mark.touch()
    work.exchange(None)
    together = all(work.exchange(mark.exists()))
    if trainer.is_global_zero:
        mark.unlink()
    if together:
        return 0, trainer.global_rank, trainer.world_size
    return trainer.node_rank, trainer.local_rank, trainer.num_devices
