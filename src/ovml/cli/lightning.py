"""`ovml fit|validate|test|predict`: LightningCLI, with one trainer per stage."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ovml.classifier import OVMultiLabelClassifier
from ovml.cli.lightning_parser import LightningParser, user_error
from ovml.cli.run_config import check_same_settings, current_folder, known_classes_only
from ovml.cli.settings import check_settings
from ovml.data import MultiLabelDataModule
from ovml.metrics.tables import calibration_table
from ovml.training.callbacks import EvaluationPlots
from ovml.training.callbacks.progress import SlowProgressBar
from ovml.training.callbacks.run import PredictionWriter
from ovml.training.distributed import cuts_models
from ovml.training.fit import fit_stages, split_metrics
from ovml.training.messages import quiet_libraries
from ovml.training.precision import allow_tf32
from ovml.training.report import show_results, show_run
from ovml.training.run_folder import RunFolder
from ovml.training.stages import Stage
from ovml.training.trainers import DEFAULT_ROOT, own_callbacks, stage_options
from ovml.utils.console import is_quiet, notice, show
from ovml.utils.errors import UserError, all_lines
from ovml.utils.files import write_text


class OVMLCLI(LightningCLI):
    """LightningCLI whose `fit` runs every stage and whose checkpoints are run folders.

    Args:
        args: The arguments.
        typed: Whether the user named the configuration, rather than a run's folder: then it may name classes in the
            current folder.
    """

    def __init__(self, args: list[str], typed: bool = True) -> None:
        self._typed = typed
        # The parser writes defaults as YAML, such as the `interval` of Lightning's Timer.
        yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))
        super().__init__(
            OVMultiLabelClassifier,
            MultiLabelDataModule,
            subclass_mode_data=True,
            save_config_callback=None,  # saved once per run, not once per trainer
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=LightningParser,
            parser_kwargs={"prog": "ovml"},
            trainer_defaults={"default_root_dir": DEFAULT_ROOT},
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
        with current_folder() if self._typed else nullcontext():
            super().parse_arguments(parser, args)
        check_settings(self.config[self.config["subcommand"]])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the configuration is the one in the run folder, not the checkpoint's."""

    def before_instantiate_classes(self) -> None:
        """Check that a run is resumed as it was started, before anything is made."""
        config = self.config[self.subcommand]
        if self.subcommand != "fit" or not config["ckpt_path"]:
            return
        run = RunFolder.find(config["ckpt_path"], config["trainer"]["default_root_dir"])
        one = _one_checkpoint(config["ckpt_path"])
        if one is not None and not one.samefile(run.newest_checkpoint()):
            raise UserError(
                f"ckpt_path {one}: not the newest checkpoint; to resume the run give its folder, {run.path}"
            )
        own = run.path / "config.yaml"
        if not own.is_file():
            raise UserError(f"ckpt_path {run.path}: made in Python by ovml.fit, and is resumed by ovml.fit")
        given = [Path(str(path)) for path in config.get("config") or ()]
        check_same_settings(self._parser("fit"), own, config, any(path.samefile(own) for path in given))

    def fit(self, ckpt_path: str | None = None, **_: Any) -> None:
        """Train every stage, or resume a run; print the results, unless it is a `fast_dev_run`."""
        self._check_options()
        self._run = self._run_of(ckpt_path)
        try:
            run = fit_stages(self.model, self.datamodule, self._stage_trainer, self._run or self._new_run)
        except (KeyboardInterrupt, SystemExit) as stop:
            if self._run and self.trainer.is_global_zero:
                vars(stop)["__notes__"] = [_how_to_resume(self._run)]
            raise
        show_run(run, self.model.evaluation.titles, not self._trainer_config.get("fast_dev_run"))

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
        allow_tf32(self._trainer_config, self.model.stages)
        given = own_callbacks(self._trainer_config.get("callbacks"), stage, self.model.stages if stage else ())
        given = [callback for callback in given if not (is_quiet() and isinstance(callback, ProgressBar))]
        has_bar = any(isinstance(callback, ProgressBar) for callback in given)
        shows_bar = not is_quiet() and self._trainer_config.get("enable_progress_bar") is not False
        changed = {
            "callbacks": [*given, *callbacks, *([SlowProgressBar()] if shows_bar and not has_bar else [])],
            "strategy": copy.deepcopy(self._trainer_config.get("strategy")),
            "logger": False,
            "enable_progress_bar": shows_bar,
            "enable_model_summary": bool(self._trainer_config.get("enable_model_summary")),
        }
        try:
            return super().instantiate_trainer(**changed | kwargs)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            # Options do not go together, or not on this machine.
            raise UserError(f"trainer: {all_lines(error)}") from error

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
        run = self._run = RunFolder.new(self._root)
        write_text(run.path / "config.yaml", self._parser("fit").dump(self.config["fit"], skip_unset=False))
        return run

    def _plots(self, folder: Path) -> list[EvaluationPlots]:
        return [EvaluationPlots(str(folder))] if self._get(self.config_init, "plots") else []

    def _stage_trainer(self, stage: Stage | None, run: RunFolder | None) -> Trainer:
        if stage is None or run is None:
            return self.trainer
        options = stage_options(stage, self.model.stages.index(stage), run, self._trainer_config)
        callbacks = [*self._plots(run.path / stage.name), *options.pop("callbacks")]
        return self.instantiate_trainer(callbacks, stage, **options)

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
        show_results(rows, verb, model.evaluation.titles)
        if (probabilities := calibration_table(rows, verb)) is not None:
            show(probabilities)
        if plots:
            show(f"figures: {folder}")


def _one_checkpoint(ckpt_path: str | None) -> Path | None:
    """The path, if it is that of a checkpoint rather than of a run."""
    path = Path(str(ckpt_path))
    return path if os.path.isfile(path) and path.suffix == ".ckpt" else None


def _how_to_resume(run: RunFolder) -> str:
    if not list(run.path.glob("*/last.ckpt")):
        return "no epoch was finished, so there is nothing to resume"
    return f"'ovml fit --ckpt_path {run.path}' resumes from the last finished epoch"


def run_lightning(argv: list[str], own: Path | None = None) -> None:
    """Run one of Lightning's commands.

    Args:
        argv: The arguments.
        own: The configuration in a run's folder, if it is read without being named.
    """
    try:
        with quiet_libraries(), nullcontext() if own is None else known_classes_only(own, argv):
            OVMLCLI(argv, typed=own is None)
    except MisconfigurationException as error:  # of a callback that does not fit
        raise UserError(f"trainer: {all_lines(error)}") from error
    except ValueError as error:
        if (told := user_error(error)) is None:
            raise
        raise told from error
