"""`ovml fit|validate|test|predict`: LightningCLI, with one trainer per stage."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import ovml.data
from ovml.classifier import OVMultiLabelClassifier
from ovml.cli.command import UserErrors, with_flags
from ovml.data import MultiLabelDataModule
from ovml.encoders.image_processor import Preprocessing
from ovml.metrics.tables import calibration_table, results_table
from ovml.training.callbacks import EvaluationPlots
from ovml.training.callbacks.run import EpochSeed, PredictionWriter, stage_checkpoint
from ovml.training.distributed import cuts_models
from ovml.training.fit import fit_stages
from ovml.training.run_folder import RunFolder
from ovml.training.stages import Stage
from ovml.utils.console import is_quiet, show
from ovml.utils.errors import UserError, one_line
from ovml.utils.files import write_text

ROOMS = (
    "ovml.data",
    "ovml.distillation",
    "ovml.heads",
    "ovml.losses",
    "ovml.metrics",
    "ovml.prompts",
    "ovml.training",
    "ovml.training.callbacks",
)
"""Packages whose classes may be named without their module."""

# jsonargparse looks bare names such as `LocalHead` up among imported classes.
for _room in map(import_module, ROOMS):
    for _name in _room.__all__:
        getattr(_room, _name)


class _Parser(UserErrors, LightningArgumentParser):
    pass


class OVMLCLI(LightningCLI):
    """LightningCLI whose `fit` runs every stage and whose checkpoints are run folders."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            OVMultiLabelClassifier,
            MultiLabelDataModule,
            subclass_mode_data=True,
            save_config_callback=None,  # saved once per run, not once per trainer
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=_Parser,
            parser_kwargs={"prog": "ovml"},
            trainer_defaults={"default_root_dir": "runs/ovml"},
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--plots`; link what model and data share."""
        parser.add_argument(
            "--plots", action="store_true", help="draw figures of each evaluation; needs pip install 'ovml[plots]'"
        )
        parser.link_arguments("data", "model.labels", compute_fn=lambda data: data.vocabulary, apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the configuration is the one in the run folder, not the checkpoint's."""

    def fit(self, model: OVMultiLabelClassifier, datamodule: MultiLabelDataModule, **kwargs: Any) -> None:
        """Train every stage, or resume a run; print the results, unless it is a `fast_dev_run`."""
        ckpt_path = kwargs.get("ckpt_path")
        root = self._trainer_config["default_root_dir"]
        run = RunFolder.find(ckpt_path, root) if ckpt_path else None
        run = fit_stages(model, datamodule, self._stage_trainer, run or self._new_run)
        if not self.trainer.is_global_zero:
            return
        if self._trainer_config.get("fast_dev_run"):
            show("fast_dev_run: every stage ran; no run is kept")
        else:
            show(results_table(run.results, "validation", model.evaluation.titles))
            show(f"run: {run.path}\ntag: ovml tag IMAGE --labels A,B --model {run.path}")

    def _new_run(self) -> RunFolder:
        run = RunFolder.new(self._trainer_config["default_root_dir"])
        if not self._trainer_config.get("fast_dev_run"):  # which writes neither checkpoints nor results
            write_text(run.path / "config.yaml", self._parser("fit").dump(self.config["fit"], skip_unset=False))
        return run

    def validate(self, model: OVMultiLabelClassifier, datamodule: MultiLabelDataModule, **kwargs: Any) -> None:
        """Evaluate zero-shot CLIP and the stages of a run on the validation split."""
        self._evaluate("validate", "val", model, datamodule, kwargs.get("ckpt_path"))

    def test(self, model: OVMultiLabelClassifier, datamodule: MultiLabelDataModule, **kwargs: Any) -> None:
        """Evaluate zero-shot CLIP and the stages of a run on the test split."""
        self._evaluate("test", "test", model, datamodule, kwargs.get("ckpt_path"))

    def predict(self, model: OVMultiLabelClassifier, datamodule: MultiLabelDataModule, **kwargs: Any) -> None:
        """Write the best labels of every test image to `predictions.jsonl` in the run folder."""
        ckpt_path, folder = kwargs.get("ckpt_path"), Path(self._trainer_config["default_root_dir"])
        if ckpt_path:
            run = RunFolder.find(ckpt_path, folder)
            folder = run.path
            model.load_learned(ckpt_path if Path(ckpt_path).is_file() else run.newest_checkpoint())
        writer = PredictionWriter(folder / "predictions.jsonl", datamodule.vocabulary.names)
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        self.trainer.predict(model, datamodule=datamodule, return_predictions=False)
        if self.trainer.is_global_zero:
            show(f"predictions: {writer.path}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a trainer with a rich progress bar; loggers are added per stage."""
        config = self._trainer_config
        kwargs.setdefault("callbacks", copy.deepcopy(config.get("callbacks")) or [])
        kwargs.setdefault("logger", False)
        # Given as a class it is one object, and a strategy serves one trainer only.
        kwargs.setdefault("strategy", copy.deepcopy(config.get("strategy")))
        if is_quiet():
            kwargs["enable_progress_bar"] = False
        elif config.get("enable_progress_bar") is not False:
            kwargs["callbacks"].append(_ProgressBar())
        if config.get("enable_model_summary") is None:
            kwargs["enable_model_summary"] = False
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:  # of options that do not go together, or not here
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error

    @property
    def _trainer_config(self) -> dict[str, Any]:
        config: dict[str, Any] = self._get(self.config_init, "trainer")
        return config

    def _stage_trainer(self, stage: Stage | None, run: RunFolder | None) -> Trainer:
        if stage is None or run is None:
            return self.trainer
        config = self._trainer_config
        callbacks = copy.deepcopy(config.get("callbacks")) or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if self._get(self.config_init, "plots"):
            callbacks.append(EvaluationPlots(str(run.path / stage.name)))
        logger = copy.deepcopy(config.get("logger"))
        if logger is None or logger is True:
            logger = self._default_loggers(stage, run)
        if logger and not config.get("fast_dev_run"):
            callbacks.append(LearningRateMonitor())
        index = self.model.stages.index(stage)
        checkpoint = [] if config.get("enable_checkpointing") is False else [stage_checkpoint(run, stage)]
        return self.instantiate_trainer(
            callbacks=[*callbacks, EpochSeed(index), *checkpoint],
            logger=logger,
            max_epochs=min(stage.epochs, config.get("max_epochs") or stage.epochs),
            default_root_dir=str(run.path),
        )

    @staticmethod
    def _default_loggers(stage: Stage, run: RunFolder) -> list[Any]:
        # CSVLogger empties the folder that it is given: a resumed stage logs beside its first log.
        resumed = len(list((run.path / stage.name).glob("log*")))
        version = f"{stage.name}/log" + (f"_{resumed}" if resumed else "")
        return [cls(str(run.path), name="", version=version) for cls in (CSVLogger, TensorBoardLogger)]

    def _evaluate(
        self, verb: str, split: str, model: OVMultiLabelClassifier, data: MultiLabelDataModule, ckpt_path: Any
    ) -> None:
        rows: dict[str, dict[str, float]] = {}
        root = self._trainer_config["default_root_dir"]
        run = RunFolder.find(ckpt_path, root) if ckpt_path else None
        folder = (run.path if run else Path(root)) / f"{verb}_plots"
        plots = EvaluationPlots(str(folder)) if self._get(self.config_init, "plots") else None
        if plots is not None:
            self.trainer.callbacks.append(plots)  # type: ignore[attr-defined]

        def evaluate(row: str, candidate: OVMultiLabelClassifier) -> None:
            if cuts_models(self.trainer.strategy):
                candidate = copy.deepcopy(candidate)
            if plots is not None:
                plots.row = row
            getattr(self.trainer, verb)(candidate, datamodule=data, verbose=False)
            found = self.trainer.callback_metrics.items()
            rows[row] = {k.removeprefix(f"{split}/"): float(v) for k, v in found if k.startswith(f"{split}/")}

        evaluate("zero-shot", model.zero_shot())
        if run is None:
            evaluate("untrained", model)
        else:
            own = Path(ckpt_path).is_file() and Path(ckpt_path).suffix == ".ckpt"
            files = [Path(ckpt_path)] if own else [run.checkpoint(stage.name) for stage in model.stages]
            for file in (f for f in files if f.is_file()):
                model.load_learned(file)
                evaluate(file.parent.name, model)
            if self.trainer.is_global_zero:
                write_text(run.path / f"{verb}_results.json", json.dumps(rows, indent=1))
        if self.trainer.is_global_zero:
            show(results_table(rows, verb, model.evaluation.titles))
            if (probabilities := calibration_table(rows, verb)) is not None:
                show(probabilities)
            if plots is not None:
                show(f"figures: {folder}")


def run_lightning(argv: list[str]) -> None:
    """Run one of Lightning's commands."""
    try:
        with quiet_libraries():
            OVMLCLI(argv)
    except ValueError as error:
        # The parser tries one type after another and wraps what it caught.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise UserError(with_flags(one_line(cause), _flags())) from cause


def _flags() -> dict[str, str]:
    """The options of arguments, which errors name as `root` or `data.root`."""
    modules = [getattr(ovml.data, name) for name in ovml.data.__all__ if name.endswith("DataModule")]
    groups = {
        "trainer": [Trainer],
        "model": [OVMultiLabelClassifier],
        "model.preprocessing": [Preprocessing],
        "data": modules,
    }
    flags: dict[str, str] = {}
    for group, classes in groups.items():
        for name in (name for cls in classes for name in inspect.signature(cls).parameters):
            flags |= dict.fromkeys((name, f"{group}.{name}"), f"--{group}.{name}")
    return flags | {"clip": "--model.clip"}  # which data.clip follows


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence messages of the libraries about what ovml handles itself."""
    import datasets
    import transformers

    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        for message in (
            "LightningCLI's args parameter is intended",  # other processes are started with the same arguments
            "Checkpoint directory .* exists and is not empty",  # the run folder is ovml's own
            "The number of training batches .* is smaller than the logging interval",
            r"Found \d+ module\(s\) in eval mode",  # the frozen teacher
            ".*does not have many workers",
            "Your `IterableDataset` has `__len__` defined",  # each worker yields its share
            r".*isinstance\(treespec, LeafSpec\)",
            "`training_step` returned `None`",  # a batch without labels is skipped
            "Found keys that are in the model state dict but not in the checkpoint",  # the frozen CLIP's
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


class _ProgressBar(RichProgressBar):
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """All but the run's version, which is part of the path."""
        return {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}
