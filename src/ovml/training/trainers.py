"""One trainer per stage of a run; and all stages in one call."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ovml.training.callbacks.progress import SlowProgressBar
from ovml.training.callbacks.run import EpochSeed, stage_checkpoint
from ovml.training.fit import StagedModule, fit_stages
from ovml.training.messages import quiet_libraries
from ovml.training.precision import allow_tf32, stage_precision
from ovml.training.report import show_run
from ovml.training.run_folder import RunFolder
from ovml.training.stages import Stage
from ovml.utils.console import is_quiet
from ovml.utils.files import check_folder

DEFAULT_ROOT = "runs/ovml"
"""Folder of runs if no other is given."""


def fit(
    model: StagedModule, datamodule: LightningDataModule, ckpt_path: str | Path | None = None, **trainer_options: Any
) -> RunFolder:
    """Train all stages of a model, one after the other, each with a trainer of its own; print the results.

    A `Trainer.fit` trains one stage. Checkpoints, logs and validation metrics are kept in a new folder `version_N`.
    With `OVML_QUIET=1` in the environment nothing is printed.

    Args:
        model: An `OVMultiLabelClassifier`, trained in place.
        datamodule: Training and validation data, such as `ovml.data.FolderDataModule`.
        ckpt_path: A run to resume: its folder, or `last` for the newest below `default_root_dir`. Model and data must
            be made as they were for that run.
        trainer_options: Of `lightning.pytorch.Trainer`. `default_root_dir` (`runs/ovml`) is where run folders are made;
            `max_epochs` only shortens stages; `logger=True`, the default, writes CSV and TensorBoard logs. Each stage
            has copies of `callbacks`, so what they learn stays in their files, not in the objects given.

    Returns:
        The run; `results` are the validation metrics by row: `zero-shot` and every stage.

    Raises:
        UserError: There is no such run, another process trains it, or model, data and options do not fit.

    Example:
        >>> from ovml import OVMultiLabelClassifier, PromptStage
        >>> from ovml.data import DemoDataModule
        >>> data = DemoDataModule(train_size=8, eval_size=4, batch_size=4, num_workers=0)
        >>> model = OVMultiLabelClassifier("ovml-demo", data.vocabulary, stages=[PromptStage(epochs=1)])
        >>> quiet = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}
        >>> quiet["default_root_dir"] = getfixture("tmp_path")
        >>> run = fit(model, data, **quiet)  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        validation: labels ranked by score (%)
        ...
        run: .../version_0
        tag: ovml tag IMAGE --labels A,B --model .../version_0
        >>> list(run.results)
        ['zero-shot', 'prompt']
    """
    root = Path(trainer_options.get("default_root_dir") or DEFAULT_ROOT)
    check_folder(root, "default_root_dir")
    options = {"enable_model_summary": False, **trainer_options, "default_root_dir": str(root)}
    given = options.pop("callbacks", None)

    def make_trainer(stage: Stage | None, run: RunFolder | None) -> Trainer:
        # A callback or strategy is one object, and serves one trainer only.
        own = copy.deepcopy(options)
        allow_tf32(own, model.stages)
        if stage is None or run is None:
            own |= {"logger": False, "enable_checkpointing": False, "callbacks": []}
        else:
            own |= stage_options(stage, model.stages.index(stage), run, own)
            own["callbacks"] = [*own_callbacks(given, stage, model.stages), *own["callbacks"]]
        has_bar = any(isinstance(callback, ProgressBar) for callback in own["callbacks"])
        if own.get("enable_progress_bar") is not False and not own.get("barebones") and not has_bar:
            own["callbacks"].append(SlowProgressBar())
        return Trainer(**own)

    def new_run() -> RunFolder:
        # A fast_dev_run writes neither checkpoints nor results.
        return RunFolder(root / "fast_dev_run") if options.get("fast_dev_run") else RunFolder.new(root)

    products = torch.get_float32_matmul_precision()
    try:
        with quiet_libraries():
            run = fit_stages(model, datamodule, make_trainer, RunFolder.find(ckpt_path, root) if ckpt_path else new_run)
    finally:
        torch.set_float32_matmul_precision(products)
    if not is_quiet():
        show_run(run, model.evaluation.titles, not options.get("fast_dev_run"))
    return run


def own_callbacks(given: Any, stage: Stage | None = None, stages: Sequence[Stage] = ()) -> list[Callback]:
    """The user's callbacks, copied for one trainer.

    Args:
        given: One callback, several, or none.
        stage: What the trainer trains.
        stages: All stages. Where there are several, each keeps the checkpoints of a `ModelCheckpoint` with a `dirpath`
            in a folder of its own below it.
    """
    callbacks: list[Callback] = copy.deepcopy(given if isinstance(given, list) else [given] if given else [])
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath and stage and len(stages) > 1:
            callback.dirpath = os.path.join(callback.dirpath, stage.name)
    return callbacks


def stage_options(stage: Stage, position: int, run: RunFolder, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in which the trainer of a stage differs from those that were given for the run.

    Args:
        stage: The stage.
        position: Its place among the stages.
        run: Where its checkpoint and its logs are kept.
        options: Of `Trainer`.

    Returns:
        `logger`, `max_epochs`, `default_root_dir` and perhaps `precision`; `callbacks`, which are added to those given.
    """
    logger = copy.deepcopy(options.get("logger"))
    if logger is None or logger is True:
        # CSVLogger empties the folder that it is given: a resumed stage logs beside its first log.
        resumed = len(list((run.path / stage.name).glob("log*")))
        version = f"{stage.name}/log" + (f"_{resumed}" if resumed else "")
        logger = [cls(str(run.path), name="", version=version) for cls in (CSVLogger, TensorBoardLogger)]
    callbacks: list[Callback] = []
    if logger and not options.get("fast_dev_run"):
        callbacks.append(LearningRateMonitor())
    callbacks.append(EpochSeed(position))
    if options.get("enable_checkpointing") is not False:
        callbacks.append(stage_checkpoint(run, stage))
    epochs = options.get("max_epochs")
    return {
        **stage_precision(options, stage),
        "callbacks": callbacks,
        "logger": logger,
        "max_epochs": stage.epochs if epochs in (None, -1) else min(stage.epochs, epochs),
        "default_root_dir": str(run.path / stage.name),
    }
