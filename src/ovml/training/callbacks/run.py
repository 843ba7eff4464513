"""Callbacks that `ovml fit` adds to every stage's trainer."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from ovml.training.run_folder import RunFolder
from ovml.training.stages import Stage


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
    """Collects `ovml predict`'s best labels of every image, one JSON object a line, in the data set's order.

    Args:
        path: File to write; it appears when it is complete.
        labels: Names of the score columns.
        top_k: Labels kept per image.
    """

    def __init__(self, path: Path, labels: tuple[str, ...], top_k: int = 10) -> None:
        self.path, self.labels, self.top_k = path, labels, min(top_k, len(labels))

    def _part(self, rank: int) -> Path:
        return self.path.with_suffix(f".part-{rank}")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open this process's file beside the final place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._part(trainer.global_rank), "w", encoding="utf-8")  # noqa: SIM115 - closed at the end

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Write a batch."""
        if not outputs["image_id"]:  # all of its pictures were broken and left out
            return
        best = outputs["scores"].float().topk(self.top_k)
        for image_id, scores, columns in zip(
            outputs["image_id"], best.values.tolist(), best.indices.tolist(), strict=True
        ):
            tags = [{"label": self.labels[c], "score": round(s, 6)} for s, c in zip(scores, columns, strict=True)]
            self._file.write(json.dumps({"image_id": image_id, "labels": tags}, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the processes' files and rename the whole into its place."""
        self._file.close()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            parts = [self._part(rank) for rank in range(trainer.world_size)]
            whole = self.path.with_suffix(".part")
            with ExitStack() as stack, open(whole, "w", encoding="utf-8") as out:
                files = [stack.enter_context(open(part, encoding="utf-8")) for part in parts]
                # Process r has rows r, r + n, r + 2n, ...
                for lines in zip_longest(*files, fillvalue=""):
                    out.writelines(lines)
            whole.replace(self.path)
            for part in parts:
                part.unlink()
        trainer.strategy.barrier()
