"""Callbacks that `ovml fit` adds to every stage's trainer."""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from ovml.training.run_folder import RunFolder
from ovml.training.stages import Stage
from ovml.utils.files import atomic_write


class EpochSeed(Callback):
    """Seeds every epoch from (run seed, stage, epoch, process).

    Random numbers of an epoch do not depend on what ran before it, so a resumed run draws the same as an uninterrupted
    one.

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


class StageCheckpoint(ModelCheckpoint):
    """The run's own checkpoint; its name lets its state stand beside that of a `ModelCheckpoint` of the user's."""


def stage_checkpoint(run: RunFolder, stage: Stage) -> ModelCheckpoint:
    """A callback that keeps the newest epoch of a stage.

    The last epoch is the result: choosing the best one by its score on unseen labels would train on them.
    """
    path = run.checkpoint(stage.name)
    return StageCheckpoint(
        dirpath=path.parent, filename=path.stem, enable_version_counter=False, save_on_train_epoch_end=True
    )


class PredictionWriter(Callback):
    """Writes the best labels of every image, one JSON object per line, in the data set's order.

    Each process writes a file of its own, with the number of the row before each line; the first process joins them.

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
        """Open this process's file beside the final one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._part(trainer.global_rank), "w", encoding="utf-8")  # noqa: SIM115 - closed at the end

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Write a batch."""
        if not outputs["image_id"]:  # all of its images were broken and left out
            return
        best = outputs["scores"].float().topk(self.top_k)
        for row, image_id, scores, columns in zip(
            batch["row"], outputs["image_id"], best.values.tolist(), best.indices.tolist(), strict=True
        ):
            tags = [{"label": self.labels[c], "score": round(s, 6)} for s, c in zip(scores, columns, strict=True)]
            line = json.dumps({"image_id": image_id, "labels": tags}, ensure_ascii=False)
            self._file.write(f"{row}\t{line}\n")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the files of all processes."""
        self._file.close()
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            parts = [self._part(rank) for rank in range(trainer.world_size)]
            with atomic_write(self.path) as beside, open(beside, "w", encoding="utf-8") as out, ExitStack() as stack:
                files = [stack.enter_context(open(part, encoding="utf-8")) for part in parts]
                out.writelines(line for _, line in heapq.merge(*map(_numbered, files), key=itemgetter(0)))
            for part in parts:
                part.unlink()
        trainer.strategy.barrier()


def _numbered(file: TextIO) -> Iterator[tuple[int, str]]:
    for line in file:
        row, _, rest = line.partition("\t")
        yield int(row), rest
