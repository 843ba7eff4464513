"""Training the stages of a model one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

from lightning.pytorch import LightningDataModule, Trainer

from ovml.training.distributed import cuts_models
from ovml.training.run_folder import RunFolder
from ovml.training.stages import Stage
from ovml.utils.errors import UserError


def fit_stages(
    model: Any,
    datamodule: LightningDataModule,
    make_trainer: Callable[[Stage | None, RunFolder | None], Trainer],
    run: RunFolder | Callable[[], RunFolder],
) -> RunFolder:
    """Train the model's stages one after the other, each with a trainer of its own.

    Each stage is one `Trainer.fit`: what learns differs between stages, and DDP fixes it when it wraps the model.
    What a run folder already holds is not done again: finished stages are loaded, and a stage with a checkpoint
    goes on from it.

    Args:
        model: An `OVMultiLabelClassifier`; trained in place.
        datamodule: Gives training and validation data.
        make_trainer: Makes the trainer of a stage, which must write `run.checkpoint(stage.name)`; or, for `None`, one
            that only evaluates.
        run: Where checkpoints and results are kept; or what makes the folder of a new run, called by one process.

    Returns:
        The run; its `results` are the validation metrics by row: `zero-shot` and every stage.
    """
    if not model.stages:
        raise UserError("model.stages is empty: there is nothing to train; list at least one stage")
    folder = run if isinstance(run, RunFolder) else None
    if folder is None or "zero-shot" not in folder.results:
        trainer = make_trainer(None, None)
        cuts_models(trainer.strategy)  # what a stage would stumble over is said before the first evaluation
        trainer.validate(model.zero_shot(), datamodule=datamodule, verbose=False)
        if folder is None:
            # From here on the processes know each other, so that all use the folder that the first one made.
            made = run() if callable(run) and trainer.is_global_zero else None
            folder = cast("RunFolder", trainer.strategy.broadcast(made))
        _record(folder, trainer, "zero-shot")
    for stage in model.stages:
        checkpoint = folder.checkpoint(stage.name)
        if stage.name in folder.results:
            model.load_learned(checkpoint)
            continue
        model.start_stage(stage)
        trainer = make_trainer(stage, folder)
        learner = copy.deepcopy(model) if cuts_models(trainer.strategy) else model
        trainer.fit(
            learner,
            datamodule=datamodule,
            ckpt_path=checkpoint if checkpoint.is_file() else None,
            weights_only=True,
        )
        if not split_metrics(trainer, "val"):  # the last epoch may be one without validation
            trainer.validate(learner, datamodule=datamodule, verbose=False)
        _record(folder, trainer, stage.name)
        if learner is not model and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            model.load_learned(checkpoint)
    return folder


def _record(run: RunFolder, trainer: Trainer, row: str) -> None:
    metrics = split_metrics(trainer, "val")
    if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        run.add_result(row, metrics)
    trainer.strategy.barrier()


def split_metrics(trainer: Trainer, split: str) -> dict[str, float]:
    """The metrics that a trainer just logged of a split, such as `val`, without the split's name."""
    found = trainer.callback_metrics.items()
    return {k.removeprefix(f"{split}/"): float(v) for k, v in found if k.startswith(f"{split}/")}
