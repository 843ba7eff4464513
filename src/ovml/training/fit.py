"""Training the stages of a model one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only

from ovml.metrics.evaluation import OpenVocabularyEvaluation
from ovml.saving.checkpoint import read_checkpoint
from ovml.training.batches import step_batches
from ovml.training.callback_checks import check_callbacks
from ovml.training.checkpoint_io import write_whole_checkpoints
from ovml.training.distributed import cuts_models
from ovml.training.learning import check_learns
from ovml.training.objective import Objective
from ovml.training.run_folder import RunFolder
from ovml.training.stages import LearningParts, Stage
from ovml.utils.console import notice
from ovml.utils.errors import UserError


class StagedModule(Protocol):
    """A `LightningModule` that learns in stages: what training and loading need of `OVMultiLabelClassifier`."""

    stages: list[Stage]
    objective: Objective
    evaluation: OpenVocabularyEvaluation

    @property
    def learning_parts(self) -> LearningParts:
        """All parts that a stage can train."""
        ...

    def start_stage(self, stage: Stage) -> None:
        """Make a stage's parameters, and no others, learn."""

    def load_learned(self, path: str | Path, checkpoint: dict[str, Any] | None = None) -> None:
        """Load learned weights from a checkpoint, which may have been read already."""

    def zero_shot(self) -> LightningModule:
        """The model as it was before all training."""
        ...


def fit_stages(
    model: StagedModule,
    datamodule: LightningDataModule,
    make_trainer: Callable[[Stage | None, RunFolder | None], Trainer],
    run: RunFolder | Callable[[], RunFolder],
) -> RunFolder:
    """Evaluate zero-shot CLIP, then train the model's stages one after the other, each with a trainer of its own.

    Each stage is one `Trainer.fit`, because DDP fixes what learns when it wraps the model. What a run folder already
    holds is not computed again: finished stages are loaded, and a stage with a checkpoint resumes from it. Meanwhile no
    other process can train the same run.

    Args:
        model: Trained in place.
        datamodule: Training and validation data.
        make_trainer: Makes the trainer of a stage, which must write `run.checkpoint(stage.name)`; or, for `None`, one
            that only evaluates, none of whose callbacks but the progress bar is called.
        run: Where checkpoints and results are kept; or a function that makes a new run, called by one process.

    Returns:
        The run; its `results` are the validation metrics by row: `zero-shot` and every stage.

    Raises:
        UserError: The model has no stages, a strategy, callback or checkpoint does not fit, or another process trains
            the run.
    """
    with ExitStack() as held:
        return _fit_stages(model, datamodule, make_trainer, run, held)


def _fit_stages(
    model: StagedModule,
    datamodule: LightningDataModule,
    make_trainer: Callable[[Stage | None, RunFolder | None], Trainer],
    run: RunFolder | Callable[[], RunFolder],
    held: ExitStack,
) -> RunFolder:
    if not model.stages:
        raise UserError("model.stages is empty: there is nothing to train; list at least one stage")
    for stage in model.stages:
        check_learns(stage, model.learning_parts)
    folder = run if isinstance(run, RunFolder) else None
    if folder is not None:
        _hold(folder, held)
    if folder is None or "zero-shot" not in folder.results:
        trainer = make_trainer(None, None)
        _check_length(trainer)
        cuts_models(trainer.strategy)  # raises before the first evaluation rather than after it
        check_callbacks(trainer, model, model.stages)
        for stage in model.stages:
            step_batches(stage, trainer, datamodule)  # raises
        with _progress_bar_alone(trainer):
            trainer.validate(model.zero_shot(), datamodule=datamodule, verbose=False)
        if folder is None:
            # The processes are connected by now, so all use the folder that the first one makes.
            made = run() if callable(run) and trainer.is_global_zero else None
            folder = cast("RunFolder", trainer.strategy.broadcast(made))
            _hold(folder, held)
        _record(folder, trainer, "zero-shot")
    finished = [stage for stage in model.stages if stage.name in folder.results]
    for stage in model.stages:
        checkpoint = folder.checkpoint(stage.name)
        if stage in finished:
            model.load_learned(checkpoint)
            _say(f"stage {stage.name!r} is finished; its results are kept")
            continue
        begun = checkpoint.is_file()
        if begun:
            read_checkpoint(checkpoint, mmap=True)  # raises in one line where Lightning would not
        model.start_stage(stage)
        trainer = make_trainer(stage, folder)
        write_whole_checkpoints(trainer.strategy)
        _check_length(trainer)
        trainer.callbacks.append(validated := _LastValidation())  # type: ignore[attr-defined]
        learner: Any = copy.deepcopy(model) if cuts_models(trainer.strategy) else model
        trainer.fit(
            learner,
            datamodule=datamodule,
            ckpt_path=checkpoint if begun else None,
            weights_only=True,
        )
        if not trainer.global_step:
            raise UserError(
                f"stage {stage.name!r}: no step was taken; give more training images, or a smaller batch size"
            )
        if validated.step != trainer.global_step:  # the last epoch may be one without validation
            with _progress_bar_alone(trainer):
                trainer.validate(learner, datamodule=datamodule, verbose=False)
            if trainer.strategy.broadcast(checkpoint.is_file()):
                trainer.save_checkpoint(checkpoint)  # with the calibration of this validation
        _record(folder, trainer, stage.name)
        if learner is not model and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            model.load_learned(checkpoint)
    if len(finished) == len(model.stages):
        _say(f"{folder.path}: this run is finished; nothing was trained")
    return folder


def _hold(run: RunFolder, held: ExitStack) -> None:
    """Let the first process keep the run to itself; a `fast_dev_run` has no folder."""
    if getattr(rank_zero_only, "rank", 0) == 0 and run.path.is_dir():
        held.enter_context(run.held())


_say = rank_zero_only(notice)


def _check_length(trainer: Trainer) -> None:
    for option in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, option) == 0:
            raise UserError(f"trainer.{option}: 0 trains nothing; leave it out, or allow a step")


@contextmanager
def _progress_bar_alone(trainer: Trainer) -> Iterator[None]:
    """Within the block a trainer's other callbacks are not called."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = [c for c in callbacks if isinstance(c, ProgressBar)]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]


class _LastValidation(Callback):
    """Remembers the step of the last validation."""

    step: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step = None if trainer.sanity_checking else trainer.global_step


def _record(run: RunFolder, trainer: Trainer, row: str) -> None:
    metrics = split_metrics(trainer, "val")
    if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        run.add_result(row, metrics)
    trainer.strategy.barrier()


def split_metrics(trainer: Trainer, split: str) -> dict[str, float]:
    """The metrics that a trainer just logged of a split, such as `val`, without the split's name."""
    found = trainer.callback_metrics.items()
    return {k.removeprefix(f"{split}/"): float(v) for k, v in found if k.startswith(f"{split}/")}
