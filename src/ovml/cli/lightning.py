"""`ovml fit|validate|test|predict`: LightningCLI, with one trainer per stage."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

import ovml.data
from ovml.classifier import OVMultiLabelClassifier
from ovml.cli.command import with_flags
from ovml.cli.parsing import UserErrors
from ovml.cli.settings import MOST_CONFIG_NODES, check_settings
from ovml.data import MultiLabelDataModule
from ovml.encoders.image_processor import Preprocessing
from ovml.metrics.tables import calibration_table, results_table
from ovml.training.callbacks import EvaluationPlots
from ovml.training.callbacks.run import EpochSeed, PredictionWriter, stage_checkpoint
from ovml.training.distributed import cuts_models
from ovml.training.fit import fit_stages, split_metrics
from ovml.training.run_folder import RunFolder
from ovml.training.stages import Stage
from ovml.utils.console import is_quiet, notice, show
from ovml.utils.errors import UserError, one_line
from ovml.utils.files import write_text
from ovml.utils.yaml import check_yaml

ROOMS = "data", "distillation", "heads", "losses", "metrics", "prompts", "training", "training.callbacks"
"""Packages of ovml whose classes may be named without their module."""

ASKED_FOR = "callbacks", "profilers", "tuner"
"""Packages of Lightning whose messages are those that the user asked for, as by `verbose`."""

# jsonargparse looks bare names such as `LocalHead` up among imported classes.
for _room in (import_module(f"ovml.{name}") for name in ROOMS):
    for _name in _room.__all__:
        getattr(_room, _name)


class _Parser(UserErrors, LightningArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})


def _checked_yaml(text: str) -> Any:
    check_yaml(text, MOST_CONFIG_NODES)
    return _load_yaml(text)


# Every configuration and value in YAML that jsonargparse loads is checked.
_load_yaml = get_loader("yaml")
set_loader("yaml", _checked_yaml, (yaml.YAMLError,))


class OVMLCLI(LightningCLI):
    """LightningCLI whose `fit` runs every stage and whose checkpoints are run folders."""

    def __init__(self, args: list[str]) -> None:
        # The parser writes defaults as YAML, such as the `interval` of Lightning's Timer.
        yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))
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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments and check what Lightning takes in silence, or refuses too late."""
        super().parse_arguments(parser, args)
        check_settings(self.config[self.config["subcommand"]])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the configuration is the one in the run folder, not the checkpoint's."""

    def fit(self, ckpt_path: str | None = None, **_: Any) -> None:
        """Train every stage, or resume a run; print the results, unless it is a `fast_dev_run`."""
        self._check_options()
        run = fit_stages(self.model, self.datamodule, self._stage_trainer, self._run_of(ckpt_path) or self._new_run)
        if not self.trainer.is_global_zero:
            return
        if self._trainer_config.get("fast_dev_run"):
            show("fast_dev_run: every stage ran; no run is kept")
        else:
            self._show_results(run.results, "validation")
            show(f"run: {run.path}\ntag: ovml tag IMAGE --labels A,B --model {run.path}")

    def validate(self, ckpt_path: str | None = None, **_: Any) -> None:
        """Evaluate zero-shot CLIP and the stages of a run on the validation split."""
        self._evaluate("validate", "val", ckpt_path)

    def test(self, ckpt_path: str | None = None, **_: Any) -> None:
        """Evaluate zero-shot CLIP and the stages of a run on the test split."""
        self._evaluate("test", "test", ckpt_path)

    def predict(self, ckpt_path: str | None = None, **_: Any) -> None:
        """Write the best labels of every test image to `predictions.jsonl` in the run folder."""
        run = self._run_of(ckpt_path)
        if run is not None:
            self.model.load_learned(_one_checkpoint(ckpt_path) or run.newest_checkpoint())
        folder = run.path if run else self._root
        writer = PredictionWriter(folder / "predictions.jsonl", self.datamodule.vocabulary.names)
        self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        self.trainer.predict(self.model, datamodule=self.datamodule, return_predictions=False)
        if self.trainer.is_global_zero:
            show(f"predictions: {writer.path}")

    def instantiate_trainer(
        self, callbacks: Sequence[Callback] = (), stage: Stage | None = None, **kwargs: Any
    ) -> Trainer:
        """Make a trainer with a rich progress bar, unless another is given; loggers are added per stage."""
        given = self._given_callbacks(stage)
        has_bar = any(isinstance(callback, ProgressBar) for callback in given)
        shows_bar = not is_quiet() and self._trainer_config.get("enable_progress_bar") is not False
        changed = {
            "callbacks": [*given, *callbacks, *([_ProgressBar()] if shows_bar and not has_bar else [])],
            "strategy": copy.deepcopy(self._trainer_config.get("strategy")),
            "logger": False,
            "enable_progress_bar": shows_bar,
            "enable_model_summary": bool(self._trainer_config.get("enable_model_summary")),
        }
        try:
            return super().instantiate_trainer(**changed | kwargs)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            # Options do not go together, or not on this machine.
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error

    def _given_callbacks(self, stage: Stage | None) -> list[Callback]:
        """The user's callbacks, for one trainer.

        Of several stages each keeps the checkpoints of a `ModelCheckpoint` with a `dirpath` in a folder of its own.
        """
        # A callback or strategy given as a class is one object, and serves one trainer only.
        found = copy.deepcopy(self._trainer_config.get("callbacks")) or []
        callbacks = found if isinstance(found, list) else [found]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath and stage and len(self.model.stages) > 1:
                callback.dirpath = os.path.join(callback.dirpath, stage.name)
        return [c for c in callbacks if not (is_quiet() and isinstance(c, ProgressBar))]

    def _check_options(self) -> None:
        config, epochs = self._trainer_config, self._trainer_config.get("max_epochs") or 0
        if config.get("barebones"):
            raise UserError(
                "trainer.barebones: keeps neither checkpoints nor results, so ovml fit cannot use it; leave it out"
            )
        shorter = [f"{stage.name} ({stage.epochs})" for stage in self.model.stages if stage.epochs < epochs]
        if shorter and self.trainer.is_global_zero:
            kept = ", ".join(shorter)
            notice(f"--trainer.max_epochs {epochs}: only shortens stages; unchanged are the epochs of {kept}")

    @property
    def _trainer_config(self) -> dict[str, Any]:
        config: dict[str, Any] = self._get(self.config_init, "trainer")
        return config

    @property
    def _root(self) -> Path:
        return Path(self._trainer_config["default_root_dir"])

    def _run_of(self, ckpt_path: str | None) -> RunFolder | None:
        return RunFolder.find(ckpt_path, self._root) if ckpt_path else None

    def _new_run(self) -> RunFolder:
        if self._trainer_config.get("fast_dev_run"):  # which writes neither checkpoints nor results
            return RunFolder(self._root / "fast_dev_run")
        run = RunFolder.new(self._root)
        write_text(run.path / "config.yaml", self._parser("fit").dump(self.config["fit"], skip_unset=False))
        return run

    def _plots(self, folder: Path) -> list[EvaluationPlots]:
        return [EvaluationPlots(str(folder))] if self._get(self.config_init, "plots") else []

    def _stage_trainer(self, stage: Stage | None, run: RunFolder | None) -> Trainer:
        if stage is None or run is None:
            return self.trainer
        config = self._trainer_config
        epochs = config.get("max_epochs")
        callbacks: list[Callback] = [*self._plots(run.path / stage.name)]
        logger = copy.deepcopy(config.get("logger"))
        if logger is None or logger is True:
            # CSVLogger empties the folder that it is given: a resumed stage logs beside its first log.
            resumed = len(list((run.path / stage.name).glob("log*")))
            version = f"{stage.name}/log" + (f"_{resumed}" if resumed else "")
            logger = [cls(str(run.path), name="", version=version) for cls in (CSVLogger, TensorBoardLogger)]
        if logger and not config.get("fast_dev_run"):
            callbacks.append(LearningRateMonitor())
        callbacks.append(EpochSeed(self.model.stages.index(stage)))
        if config.get("enable_checkpointing") is not False:
            callbacks.append(stage_checkpoint(run, stage))
        return self.instantiate_trainer(
            callbacks,
            stage,
            logger=logger,
            max_epochs=stage.epochs if epochs in (None, -1) else min(stage.epochs, epochs),
            default_root_dir=str(run.path / stage.name),
        )

    def _show_results(self, rows: dict[str, dict[str, float]], title: str) -> None:
        if any(rows.values()):
            show(results_table(rows, title, self.model.evaluation.titles))
        else:
            notice("no image was evaluated, so there are no results")

    def _evaluate(self, verb: str, split: str, ckpt_path: str | None) -> None:
        model = self.model
        rows: dict[str, dict[str, float]] = {}
        run = self._run_of(ckpt_path)
        folder = (run.path if run else self._root) / f"{verb}_plots"
        plots = self._plots(folder)
        self.trainer.callbacks += plots  # type: ignore[attr-defined]

        def evaluate(row: str, candidate: OVMultiLabelClassifier) -> None:
            if cuts_models(self.trainer.strategy):
                candidate = copy.deepcopy(candidate)
            for callback in plots:
                callback.row = row
            getattr(self.trainer, verb)(candidate, datamodule=self.datamodule, verbose=False)
            rows[row] = split_metrics(self.trainer, split)

        evaluate("zero-shot", model.zero_shot())
        if run is None:
            evaluate("untrained", model)
        else:
            one = _one_checkpoint(ckpt_path)
            for file in [one] if one else [run.checkpoint(stage.name) for stage in model.stages]:
                if file.is_file():
                    model.load_learned(file)
                    evaluate(file.relative_to(run.path).parts[0], model)
        if not self.trainer.is_global_zero:
            return
        if run is not None:
            write_text(run.path / f"{verb}_results.json", json.dumps(rows, indent=1))
        self._show_results(rows, verb)
        if (probabilities := calibration_table(rows, verb)) is not None:
            show(probabilities)
        if plots:
            show(f"figures: {folder}")


def _one_checkpoint(ckpt_path: str | None) -> Path | None:
    """The path, if it is that of a checkpoint rather than of a run."""
    path = Path(str(ckpt_path))
    return path if path.is_file() and path.suffix == ".ckpt" else None


def run_lightning(argv: list[str]) -> None:
    """Run one of Lightning's commands."""
    try:
        with quiet_libraries():
            OVMLCLI(argv)
    except MisconfigurationException as error:  # of a callback that does not fit
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
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
    groups: dict[str, list[type]] = {"trainer": [Trainer], "model": [OVMultiLabelClassifier], "data": modules}
    groups["model.preprocessing"] = [Preprocessing]
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
    for name in ASKED_FOR:
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING if is_quiet() else logging.INFO)
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")  # all parts send their messages there
    rank_zero.setLevel(logging.INFO)
    rank_zero.addFilter(_is_asked_for)
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        for message in (
            "LightningCLI's args parameter is intended",  # other processes are started with the same arguments
            "Checkpoint directory .* exists and is not empty",  # the run folder is ovml's own
            "You requested to overfit but enabled val dataloader shuffling",  # which is in order anyway
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


def _is_asked_for(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning is a warning, or one that the user asked for."""
    is_notice = not is_quiet() and Path(record.pathname).parent.name in ASKED_FOR
    return is_notice or record.levelno >= logging.WARNING


class _ProgressBar(RichProgressBar):
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """All but the run's version, which is part of the path."""
        return {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}
