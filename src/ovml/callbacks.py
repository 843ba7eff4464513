"""Callbacks that `ovml fit` adds to every stage's trainer."""

from __future__ import annotations

import os
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from ovml.training import RunFolder, Stage


class EpochSeed(Callback):
    """Seeds every epoch from (run seed, stage, epoch, process).

    What an epoch draws then does not depend on what came before it, so a run that was killed and resumed draws
    what the unbroken one would have.

    Args:
        stage: Index of the stage.
    """

    def __init__(self, stage: int) -> None:
        self.stage = stage

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed Python, NumPy and torch before the epoch's data loader starts."""
        run_seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        sequence = np.random.SeedSequence([run_seed, self.stage, trainer.current_epoch, trainer.global_rank])
        pl.seed_everything(int(sequence.generate_state(1)[0]), workers=False, verbose=False)
        os.environ["PL_GLOBAL_SEED"] = str(run_seed)


def stage_checkpoint(run: RunFolder, stage: Stage) -> ModelCheckpoint:
    """Keeps the newest epoch of a stage.

    The last epoch is what counts: choosing the best one by its score on unseen labels would use them.
    """
    path = run.checkpoint(stage.name)
    return ModelCheckpoint(
        dirpath=path.parent, filename=path.stem, enable_version_counter=False, save_on_train_epoch_end=True
    )


class PredictionWriter(Callback):
    """Collects `ovml predict`'s best labels of every image, one JSON object a line.

    Args:
        path: File to write; it appears when it is complete.
        labels: Names of the score columns.
        top_k: Labels kept per image.
    """

    def __init__(self, path: Any, labels: tuple[str, ...], top_k: int = 10) -> None:
        self.path, self.labels, self.top_k = path, labels, min(top_k, len(labels))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the file beside its place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path.with_suffix(".part"), "w", encoding="utf-8")  # noqa: SIM115 - closed at the end

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Write a batch."""
        import json

        best = outputs["scores"].float().topk(self.top_k)
        for image_id, scores, columns in zip(
            outputs["image_id"], best.values.tolist(), best.indices.tolist(), strict=True
        ):
            tags = [{"label": self.labels[c], "score": round(s, 6)} for s, c in zip(scores, columns, strict=True)]
            self._file.write(json.dumps({"image_id": image_id, "labels": tags}, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rename the file into its place."""
        self._file.close()
        os.replace(self.path.with_suffix(".part"), self.path)
