"""A callback that keeps the features of a frozen image tower on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from ovml.data.base import MultiLabelDataModule, Split
from ovml.data.cache import cached_folder
from ovml.data.features import FeatureStore
from ovml.data.rows import RowReader, TensorRows, collate
from ovml.data.samplers import EvalSampler
from ovml.utils.errors import UserError
from ovml.utils.progress import track
from ovml.utils.tensors import digest


class FeatureCache(Callback):
    """Runs the image tower once over each split in stages that freeze it (`PromptStage`, `HeadStage`).

    The features are memory-mapped files, keyed by the tower's weights, the rows and the transform, and serve all epochs
    and later runs. Features of validation images are always kept, those of training images only without augmentation
    (`--data.augment false`), because a random crop has features of its own. Stages that change the tower run as usual,
    and so do those whose head or distillation learns from the original's features.

    One process of each machine computes them. An image takes `(1 + patches) * dimensions * 4` bytes: 0.4 MB with
    ViT-B/16.

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
        if model.stage.num_layers or any(p.requires_grad for p in model.model.image_encoder.parameters()):
            return
        if model.stage.distil and (model.model.head.uses_teacher or list(model.objective.distillation.parameters())):
            return  # features of the original tower are needed too, and are not kept
        splits: tuple[Split, ...] = ("validation",) if data.augment else ("train", "validation")
        weights = digest("", model.model.image_encoder.state_dict())
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
        if trainer.local_rank == 0:
            with cached_folder(self.cache_dir, name, [], settings) as (_, aside):
                if aside is not None:
                    self._compute(trainer, rows, aside / "features.npy")
        trainer.strategy.barrier()
        with cached_folder(self.cache_dir, name, [], settings) as (folder, _):
            return FeatureStore(folder / "features.npy")

    def _compute(self, trainer: pl.Trainer, rows: Any, path: Path) -> None:
        """Run the tower over the rows, in order; a broken image raises an error that names it."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        model: Any = trainer.lightning_module.model
        reader = RowReader(data.eval_transform, len(data.vocabulary), data.exhaustive, allow_urls=data.allow_urls)
        source = TensorRows(rows, reader)
        loader: DataLoader[Any] = DataLoader(
            source,
            batch_size=data.eval_batch_size or data.batch_size,
            sampler=EvalSampler(source, 1, 0),
            num_workers=data.num_workers,
            collate_fn=collate,
        )
        model.to(trainer.strategy.root_device)
        store, start = None, 0
        with torch.inference_mode(), trainer.precision_plugin.val_step_context():
            for batch in track(loader, "image features", total=len(loader)):
                embeds = model.encode_images(batch["pixel_values"].to(model.device))
                features = torch.cat([embeds.global_embeds.unsqueeze(1), embeds.patch_embeds], dim=1)
                if store is None:
                    store = FeatureStore.create(path, (len(source), *features.shape[1:]), self.dtype)
                store.write(start, features)
                start += len(features)
