"""Lightning's options and callbacks, by `ovml fit` and by a plain `Trainer`, do what its users expect."""

import csv
import json
import logging
import os

import lightning.pytorch as pl
import pytest
import torch
from commands import SMALL, ovml_here
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.tuner import Tuner

from ovml import OVMultiLabelClassifier, UserError
from ovml.data import DemoDataModule
from ovml.training import PromptStage, VisionStage

CALLBACKS = "--trainer.callbacks"
STEPS = 3  # of an epoch: 24 images, 8 in a batch


def stages(*names, epochs=2):
    return json.dumps([{"class_path": name, "init_args": {"epochs": epochs, "warmup_epochs": 0}} for name in names])


@pytest.fixture
def fit(config, tmp_path):
    """Runs `ovml fit` with two epochs of the prompt stage; returns the exit code."""

    def run(*options, of=("PromptStage",), epochs=2):
        root = ["--trainer.default_root_dir", str(tmp_path), "--model.stages", stages(*of, epochs=epochs)]
        return ovml_here("fit", "--config", config, *SMALL, *root, *options)

    return run


@pytest.fixture
def said():
    """The messages of Lightning that are not silenced."""
    handler, logger = logging.Handler(), logging.getLogger("lightning.pytorch")
    messages = []
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def callback(name, **arguments):
    options = [(f"{CALLBACKS}.{option}", str(value)) for option, value in arguments.items()]
    return [f"{CALLBACKS}+", name, *(part for option in options for part in option)]


def last(root, stage="prompt"):
    return torch.load(root / "version_0" / stage / "last.ckpt", weights_only=True)


def results(root):
    return json.loads((root / "version_0" / "results.json").read_text())


def checkpoints(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.ckpt"))


class Diary(Callback):
    """Notes what it is called for."""

    notes: list = []  # noqa: RUF012 - of all copies

    def __init__(self):
        self.notes.clear()

    def on_validation_start(self, trainer, pl_module):
        self.notes.append((trainer.state.fn.value, trainer.sanity_checking))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.notes.append(batch["image_id"])


class Bar:
    """Notes which bars a trainer has."""

    bars: list = []  # noqa: RUF012 - of all copies

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.bars.append([type(c).__name__ for c in trainer.callbacks if isinstance(c, ProgressBar)])


class OwnTQDM(Bar, TQDMProgressBar):
    """One of tqdm's."""


class OwnRich(Bar, RichProgressBar):
    """One of rich's."""


# By the command line.


@pytest.mark.parametrize(
    ("options", "steps", "validations"),
    [
        ({"overfit_batches": "1"}, 2, 2),
        ({"overfit_batches": "0.5"}, 2, 2),
        ({"check_val_every_n_epoch": "2", "limit_val_batches": "1"}, 6, 1),
        ({"val_check_interval": "0.34"}, 6, 6),
        ({"accumulate_grad_batches": "2", "gradient_clip_val": "1"}, 4, 2),
        ({"deterministic": "true", "detect_anomaly": "true", "inference_mode": "false"}, 6, 2),
        ({"max_steps": "4", "reload_dataloaders_every_n_epochs": "1"}, 4, 1),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_options_of_the_trainer(fit, tmp_path, options, steps, validations):
    assert fit(*(f"--trainer.{name}={value}" for name, value in options.items())) == 0
    checkpoint = last(tmp_path)
    assert checkpoint["global_step"] == steps
    assert checkpoint["ovml"]["calibration"] is not None
    with open(tmp_path / "version_0" / "prompt" / "log" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row.get("val/zsl/mAP")) for row in rows) >= validations
    assert set(results(tmp_path)) == {"zero-shot", "prompt"}
    assert 0 < results(tmp_path)["prompt"]["zsl/mAP"] <= 1


def test_a_training_without_validation_has_no_results_and_says_so(fit, tmp_path, capsys):
    assert fit("--trainer.limit_val_batches", "0") == 0
    printed = capsys.readouterr()
    assert "no image was evaluated, so there are no results" in printed.err
    assert "validation" not in printed.out
    assert last(tmp_path)["global_step"] == 2 * STEPS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.barebones", "true"], "--trainer.barebones: keeps neither checkpoints nor results"),
        (callback("LearningRateFinder"), "LearningRateFinder: a stage has several learning rates"),
        (callback("BackboneFinetuning"), "BackboneFinetuning: stages choose which weights learn"),
        (["--model.prompt", "TemplatePrompt"], "stage 'prompt': nothing learns in it, of ImageEncoder, TwoStreamHead"),
        (callback("ModelCheckpoint", monitor="val/nope"), "has no metric 'val/nope' to monitor; it has train/loss, "),
        (callback("EarlyStopping", monitor="val_loss"), "EarlyStopping: stage 'prompt' has no metric 'val_loss'"),
        (
            callback("ModelCheckpoint", monitor="train/distillation"),
            "stage 'prompt' has no metric 'train/distillation'",
        ),
        (
            ["--trainer.limit_val_batches", "0", *callback("EarlyStopping", monitor="val/zsl/mAP")],
            "to monitor; it has train/loss, train/classification\n",
        ),
        (callback("ModelCheckpoint") + callback("ModelCheckpoint"), "more than one stateful callback"),
    ],
    ids=[
        "barebones",
        "rate",
        "backbone",
        "nothing learns",
        "checkpoint",
        "stopping",
        "other stage",
        "no validation",
        "twice",
    ],
)
def test_what_cannot_work_is_one_line_before_anything_runs(fit, tmp_path, capsys, options, message):
    assert fit(*options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "folder", "kept"),
    [
        ({"save_top_k": -1}, "{stage}/log/checkpoints", ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"]),
        ({"save_top_k": -1, "monitor": "val/zsl/mAP", "filename": "{step}"}, None, ["step=3.ckpt", "step=6.ckpt"]),
        ({"monitor": "zsl/mAP", "filename": "best"}, None, ["best.ckpt"]),
        (
            {"dirpath": "ROOT/mine", "save_last": "true", "filename": "one"},
            "../mine/{stage}",
            ["last.ckpt", "one.ckpt"],
        ),
    ],
    ids=["every epoch", "monitored", "headline", "own folder"],
)
def test_checkpoints_of_ones_own_stand_beside_the_runs(fit, tmp_path, arguments, folder, kept):
    arguments = {name: str(value).replace("ROOT", str(tmp_path)) for name, value in arguments.items()}
    assert fit(*callback("ModelCheckpoint", **arguments), of=("VisionStage", "PromptStage")) == 0
    run = tmp_path / "version_0"
    for stage in ("vision", "prompt"):
        own = run / (folder or "{stage}/log/checkpoints").format(stage=stage)
        assert checkpoints(own) == kept
        learned = torch.load(own / kept[-1], weights_only=True)["ovml"]
        assert learned["stage_names"] == ["vision", "prompt"]
        assert last(tmp_path, stage)["global_step"] == 2 * STEPS
    every = torch.load(own / kept[-1], weights_only=True)["state_dict"]
    if kept[-1] != "best.ckpt":  # it is that of the last epoch
        assert all(torch.equal(every[name], value) for name, value in last(tmp_path)["state_dict"].items())


def test_checkpoints_of_ones_own_are_evaluated_by_their_path(fit, tmp_path):
    assert fit(*callback("ModelCheckpoint", save_top_k=-1)) == 0
    found = []
    for name in ("epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"):
        path = tmp_path / "version_0" / "prompt" / "log" / "checkpoints" / name
        assert ovml_here("validate", "--ckpt_path", str(path)) == 0
        rows = json.loads((tmp_path / "version_0" / "validate_results.json").read_text())
        assert list(rows) == ["zero-shot", "prompt"]
        found.append(rows["prompt"])
    assert found[0] != found[1]
    assert found[1] == pytest.approx(results(tmp_path)["prompt"], abs=1e-6)


def test_checkpoints_without_a_logger_have_a_folder_for_each_stage(fit, tmp_path):
    options = callback("ModelCheckpoint", filename="one", enable_version_counter="false")
    assert fit(*options, "--trainer.logger", "false", of=("VisionStage", "PromptStage"), epochs=1) == 0
    found = checkpoints(tmp_path / "version_0")
    assert found == [f"{stage}/{name}.ckpt" for stage in ("prompt", "vision") for name in ("checkpoints/one", "last")]


@pytest.mark.parametrize(("mode", "found"), [("power", 4), ("binsearch", 3)])
def test_a_batch_size_is_found_and_the_schedule_follows_it(fit, tmp_path, said, mode, found):
    finder = callback("BatchSizeFinder", mode=mode, steps_per_trial=1, max_trials=2)
    assert fit("--data.batch_size", "1", *finder) == 0
    assert said[-1] == f"Finished batch size finder, will continue with full run using batch size {found}"
    checkpoint = last(tmp_path)
    assert checkpoint["global_step"] == 2 * 24 // found
    assert checkpoint["lr_schedulers"][0]["_last_lr"] == pytest.approx([1e-8])  # the end of the half-cosine
    assert checkpoints(tmp_path) == ["version_0/prompt/last.ckpt"]  # the finder's own is gone


@pytest.mark.parametrize("bar", ["OwnTQDM", "OwnRich"])
def test_ones_own_progress_bar_replaces_the_commands(fit, bar):
    Bar.bars.clear()
    option = ["--trainer.enable_progress_bar", "true"]
    assert fit(*option, *callback(f"{__name__}.{bar}"), of=("VisionStage", "PromptStage"), epochs=1) == 0
    assert Bar.bars == [[bar], [bar]]


def test_quiet_leaves_out_ones_own_progress_bar_and_messages(fit, said, monkeypatch):
    monkeypatch.setenv("OVML_QUIET", "1")
    Bar.bars.clear()
    option = ["--trainer.enable_progress_bar", "true", "--trainer.profiler", "simple"]
    assert fit(*option, *callback(f"{__name__}.OwnTQDM"), epochs=1) == 0
    assert Bar.bars == []
    assert said == []


def test_the_profiler_prints_its_summary(fit, said):
    assert fit("--trainer.profiler", "simple", epochs=1) == 0
    report = next(message for message in said if message.startswith("FIT Profiler Report"))
    assert "run_training_epoch" in report
    assert all("Profiler Report" in message for message in said)  # nothing else of Lightning's is printed


def test_early_stopping_stops_and_says_why(fit, tmp_path, said):
    arguments = {"monitor": "val/zsl/mAP", "mode": "max", "stopping_threshold": 0, "verbose": "true"}
    assert fit(*callback("EarlyStopping", **arguments)) == 0
    assert last(tmp_path)["global_step"] == STEPS
    assert len(said) == 1
    assert said[0].startswith("Stopping threshold reached: val/zsl/mAP = ")


def test_a_verbose_checkpoint_prints_its_messages(fit, said):
    assert fit(*callback("ModelCheckpoint", monitor="val/zsl/mAP", verbose="true"), epochs=1) == 0
    assert len(said) == 1
    assert "'val/zsl/mAP' reached" in said[0]


def test_a_timer_stops(fit, tmp_path):
    assert fit(*callback("Timer", duration="00:00:10:00")) == 0
    assert last(tmp_path)["global_step"] == 2 * STEPS


def test_callbacks_are_called_in_training_only(fit):
    assert fit(*callback(f"{__name__}.Diary"), "--trainer.check_val_every_n_epoch", "2", epochs=3) == 0
    validations = [note for note in Diary.notes if isinstance(note, tuple)]
    # Neither the zero-shot evaluation nor that of the third epoch, which the training leaves out.
    assert validations == [("fit", True), ("fit", False)]


def test_an_overfitted_batch_is_the_same_in_each_epoch(fit):
    assert fit(*callback(f"{__name__}.Diary"), "--trainer.overfit_batches", "1") == 0
    first, second = [note for note in Diary.notes if isinstance(note, list)]
    assert first == second
    assert len(first) == 8


def test_the_last_checkpoint_has_the_calibration_of_its_own_weights(config, fit, tmp_path):
    calibrations = []
    for every in ("1", "2"):  # the second leaves the third epoch out
        root = tmp_path / every
        options = ["--trainer.check_val_every_n_epoch", every, "--trainer.default_root_dir", str(root)]
        assert fit(*options, epochs=3) == 0
        calibrations.append(last(root)["ovml"]["calibration"])
    assert calibrations[0] == calibrations[1]


def test_more_epochs_than_a_stage_has_are_said_to_change_nothing(fit, tmp_path, capsys):
    assert fit("--trainer.max_epochs", "2", epochs=1, of=("VisionStage", "PromptStage")) == 0
    notice = "--trainer.max_epochs 2: only shortens stages; unchanged are the epochs of vision (1), prompt (1)"
    assert notice in capsys.readouterr().err
    assert last(tmp_path)["global_step"] == STEPS
    assert fit("--trainer.max_epochs", "1", epochs=2) == 0
    assert "only shortens" not in capsys.readouterr().err


# By a plain trainer.


@pytest.fixture
def data(tmp_path_factory, tiny):
    cache = tmp_path_factory.getbasetemp() / "plain"
    return DemoDataModule(train_size=24, eval_size=12, batch_size=8, clip=tiny, cache_dir=str(cache))


@pytest.fixture
def model(tiny, data):
    return OVMultiLabelClassifier(tiny, labels=data.vocabulary, stages=[VisionStage(warmup_epochs=0), PromptStage()])


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(*callbacks, **options):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "max_epochs": 2}
        return pl.Trainer(callbacks=[*callbacks], **quiet | options)

    return make


def test_checkpoints_in_lightnings_default_place_are_loaded_again(trainer, model, data, tmp_path):
    first = trainer()
    first.fit(model, data)
    assert checkpoints(tmp_path) == ["lightning_logs/version_0/checkpoints/epoch=1-step=6.ckpt"]
    path = first.checkpoint_callback.best_model_path
    expected = {name: float(value) for name, value in first.callback_metrics.items() if name.startswith("val/")}
    again = OVMultiLabelClassifier.from_checkpoint(path)
    found = trainer(logger=False).validate(again, data, verbose=False)[0]
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    longer = trainer(logger=False, max_epochs=3)
    longer.fit(model, data, ckpt_path=path)
    assert (longer.current_epoch, longer.global_step) == (3, 3 * STEPS)


def test_the_best_checkpoint_is_tested(trainer, model, data, tmp_path):
    best = ModelCheckpoint(monitor="val/zsl/mAP", mode="max", save_top_k=-1, save_last=True)
    fitted = trainer(best, logger=False)
    fitted.fit(model, data)
    assert checkpoints(tmp_path) == [f"checkpoints/{n}.ckpt" for n in ("epoch=0-step=3", "epoch=1-step=6", "last")]
    assert float(best.best_model_score) == max(float(score) for score in best.best_k_models.values())
    tested = fitted.test(model, data, ckpt_path="best", verbose=False)[0]
    by_path = fitted.test(model, data, ckpt_path=best.best_model_path, verbose=False)[0]
    assert tested == by_path
    assert "test/zsl/mAP" in tested


@pytest.mark.parametrize(
    ("by_tuner", "eval_batch_size", "in_validation"), [(False, None, 4), (False, 5, 5), (True, None, 4)]
)
def test_loaders_and_schedule_follow_a_batch_size_that_is_found(
    trainer, model, data, tmp_path, by_tuner, eval_batch_size, in_validation
):
    data.batch_size, data.eval_batch_size = 1, eval_batch_size
    trials = {"steps_per_trial": 1, "max_trials": 2}
    fitted = trainer(*([] if by_tuner else [BatchSizeFinder(**trials)]), logger=False, enable_checkpointing=False)
    if by_tuner:
        assert Tuner(fitted).scale_batch_size(model, datamodule=data, **trials) == 4
    fitted.fit(model, data)
    assert (data.batch_size, fitted.train_dataloader.batch_size, fitted.global_step) == (4, 4, 12)
    assert fitted.val_dataloaders.batch_size == in_validation
    assert max(fitted.lr_scheduler_configs[0].scheduler.get_last_lr()) == pytest.approx(1e-6)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("which", ["model", "zero-shot"])
def test_a_batch_size_is_found_for_an_evaluation(trainer, model, data, which):
    model = model if which == "model" else model.zero_shot()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    finder = BatchSizeFinder(steps_per_trial=1, max_trials=2)
    found = trainer(finder, logger=False).validate(model, data, verbose=False)[0]
    assert data.val_dataloader().batch_size == finder.optimal_batch_size == 4
    assert found == trainer(logger=False).validate(model, data, verbose=False)[0]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearningRateFinder(), "LearningRateFinder: a stage has several"),
        (lambda: EarlyStopping("val_loss"), "stage 'vision' has no metric 'val_loss' to monitor; it has train/loss"),
        (lambda: ModelCheckpoint(monitor="val/mAP"), "train/distillation, zsl/mAP, val/zsl/mAP, .*val/calibration/ECE"),
    ],
)
def test_a_callback_that_finds_nothing_is_refused(trainer, model, data, make, message):
    fitted = trainer(make(), logger=False)
    with pytest.raises(UserError, match=message):
        fitted.fit(model, data)
    assert fitted.global_step == 0


def test_every_metric_that_is_listed_can_be_monitored(trainer, model, data):
    fitted = trainer(ModelCheckpoint(monitor="nothing"), logger=False, max_epochs=1)
    with pytest.raises(UserError) as refused:
        fitted.fit(model, data)
    listed = str(refused.value).split("it has ")[1].split(", ")
    fitted = trainer(logger=False, max_epochs=1, enable_checkpointing=False)
    fitted.fit(model, data)
    logged = set(fitted.callback_metrics)
    undefined = {f"val/calibration/{name}" for name in ("ECE given", "F1")}  # where no label is returned
    assert logged <= set(listed) <= logged | undefined


class Extra(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/extra", float(trainer.current_epoch))


def test_a_metric_of_ones_own_callback_is_monitored(trainer, model, data):
    best = ModelCheckpoint(monitor="val/extra", mode="max")
    trainer(Extra(), best, logger=False).fit(model, data)
    assert float(best.best_model_score) == 1


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"overfit_batches": 1}, 2),
        ({"overfit_batches": 0.5}, 2),
        ({"limit_val_batches": 0}, 6),
        ({"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "deterministic": True}, 4),
        ({"val_check_interval": 2, "check_val_every_n_epoch": None}, 6),
        ({"barebones": True, "enable_progress_bar": None, "enable_model_summary": None, "logger": None}, 6),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_options_of_a_plain_trainer(trainer, model, data, options, steps):
    fitted = trainer(**{"logger": False} | options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted.fit(model, data)
    assert fitted.global_step == steps
    validates = options.get("limit_val_batches") != 0 and "barebones" not in options
    assert ("val/zsl/mAP" in fitted.callback_metrics) == validates
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
