"""Checks of a trainer's callbacks before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import BackboneFinetuning, LearningRateFinder, LearningRateMonitor

from ovml.metrics.evaluation import OpenVocabularyEvaluation
from ovml.training.objective import Objective
from ovml.training.stages import Stage
from ovml.utils.errors import UserError

REFUSED = {
    LearningRateFinder: "a stage has several learning rates, which follow a schedule, so there is none to find; remove "
    "the callback and set lr of the stage",
    BackboneFinetuning: "stages choose which weights learn; remove the callback and list stages, such as VisionStage",
}
"""Callbacks of Lightning that cannot work, and why."""


def check_callbacks(trainer: Any, model: Any, stages: Sequence[Stage]) -> None:
    """Check that callbacks find what they ask for: a metric to monitor, a learning rate to set.

    Metrics are not checked where a model or a callback of the user's own may log others.

    Args:
        trainer: Lightning's trainer.
        model: The classifier, whose evaluation has its vocabulary.
        stages: Those that the trainer, or one with the same callbacks, is going to train.

    Raises:
        UserError: A callback does not.
    """
    for callback in trainer.callbacks:
        for refused, reason in REFUSED.items():
            if isinstance(callback, refused):
                raise UserError(f"{type(callback).__name__}: {reason}")
    if not all(map(_is_shipped, [model, *trainer.callbacks])):
        return
    for stage in stages:
        logged = logged_metrics(model.objective, model.evaluation, stage, bool(trainer.limit_val_batches))
        for callback in trainer.callbacks:
            monitor, is_strict = getattr(callback, "monitor", None), getattr(callback, "strict", True)
            if monitor is None or not is_strict or monitor in (*logged, "epoch", "step"):
                continue
            if monitor.startswith("lr-") and any(isinstance(c, LearningRateMonitor) for c in trainer.callbacks):
                continue
            raise UserError(
                f"{type(callback).__name__}: stage {stage.name!r} has no metric {monitor!r} to monitor; it has "
                + ", ".join(logged)
            )


def logged_metrics(
    objective: Objective, evaluation: OpenVocabularyEvaluation, stage: Stage, validates: bool = True
) -> list[str]:
    """Names of the metrics that a callback can monitor in a stage.

    Args:
        objective: The classifier's.
        evaluation: The classifier's; `prepare` must have been called.
        stage: The stage.
        validates: Whether the training validates.
    """
    training = [f"train/{name}" for name in objective.term_names(stage)]
    return training + [evaluation.headline, *(f"val/{name}" for name in evaluation.metric_names)] * validates


def _is_shipped(part: object) -> bool:
    return type(part).__module__.partition(".")[0] in ("lightning", "ovml")
