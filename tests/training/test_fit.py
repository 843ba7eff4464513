"""All stages of a model, one trainer after the other."""

import json
import os
import shutil

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from test_classifier import VOCABULARY, batch, rows
from torch.utils.data import DataLoader

from ovml import OVMultiLabelClassifier, PromptStage, UserError, VisionStage
from ovml.prompts import TemplatePrompt
from ovml.training.callbacks.run import stage_checkpoint
from ovml.training.fit import fit_stages
from ovml.training.run_folder import RunFolder

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Images(LightningDataModule):
    """Eight images to train on, four to validate on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.train, self.validation = rows(8), batch(4)

    def train_dataloader(self):
        return DataLoader(self.train, 2)

    def val_dataloader(self):
        return DataLoader([self.validation], batch_size=None)


def made(tiny, **parts):
    torch.manual_seed(0)
    parts = {"stages": [VisionStage(epochs=1, warmup_epochs=0, lr=0.01), PromptStage(epochs=1, lr=0.01)], **parts}
    return OVMultiLabelClassifier(tiny, VOCABULARY, **parts)


def fitted(model, run, *callbacks, **options):
    """The stages that were trained, and the run."""
    trained = []

    def make_trainer(stage, folder):
        if stage is None:
            return Trainer(enable_checkpointing=False, **QUIET)
        trained.append(stage.name)
        keep = [stage_checkpoint(folder, stage), *callbacks]
        return Trainer(max_epochs=stage.epochs, callbacks=keep, **QUIET, **options)

    return trained, fit_stages(model, Images(), make_trainer, run)


def weights(run, stage):
    return torch.load(run.checkpoint(stage), weights_only=True)["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_ended_between_two_stages_goes_on_from_the_finished_one(tiny, tmp_path):
    trained, run = fitted(made(tiny), RunFolder.new(tmp_path))
    assert trained == ["vision", "prompt"]
    shutil.copytree(run.path, tmp_path / "cut")
    cut = RunFolder(tmp_path / "cut")
    shutil.rmtree(cut.path / "prompt")
    done = {row: metrics for row, metrics in run.results.items() if row != "prompt"}
    (cut.path / "results.json").write_text(json.dumps(done))
    model = made(tiny)
    trained, _ = fitted(model, cut)
    assert trained == ["prompt"]
    assert same(weights(cut, "prompt"), weights(run, "prompt"))
    assert not same(weights(run, "vision"), weights(run, "prompt"))
    assert cut.results == run.results
    assert same({name: model.state_dict()[name] for name in weights(run, "prompt")}, weights(run, "prompt"))


class MakesAFolder:
    """What a pickle may do when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused_on_resume(tiny, tmp_path):
    run = RunFolder.new(tmp_path)
    run.add_result("zero-shot", {"zsl/mAP": 0.5})
    run.checkpoint("vision").parent.mkdir()
    content = {"state_dict": {}, "evil": MakesAFolder(str(tmp_path / "made"))}
    torch.save(content, run.checkpoint("vision"))
    with pytest.raises(UserError, match="not a checkpoint that ovml can read safely"):
        fitted(made(tiny), run)
    assert not (tmp_path / "made").exists()


def test_a_stage_in_which_nothing_learns_is_refused_before_another_one_is_trained(tiny, tmp_path):
    model = made(tiny, prompt=TemplatePrompt())
    with pytest.raises(UserError, match="stage 'prompt': nothing learns in it, .*TemplatePrompt.*leave the stage out"):
        fitted(model, lambda: RunFolder.new(tmp_path))
    assert not list(tmp_path.iterdir())
    model.start_stage("prompt")
    with pytest.raises(UserError, match="stage 'prompt': nothing learns"):
        Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(model, datamodule=Images())


class AtSanityCheck(Callback):
    """Keeps the calibration that the model has after the check before training."""

    def on_sanity_check_end(self, trainer, pl_module):
        self.calibration = pl_module.model.calibration


def test_the_check_before_training_calibrates_nothing(tiny, tmp_path):
    check, model = AtSanityCheck(), made(tiny, stages=[PromptStage(epochs=1)])
    fitted(model, RunFolder.new(tmp_path), check, num_sanity_val_steps=2)
    assert check.calibration is None
    assert model.model.calibration is not None


def test_without_unseen_labels_the_headline_is_that_of_the_seen_ones(tiny):
    model = OVMultiLabelClassifier(tiny, list(VOCABULARY.names), stages=[])
    trainer = Trainer(enable_checkpointing=False, **QUIET)
    trainer.validate(model, datamodule=Images(), verbose=False)
    metrics = trainer.callback_metrics
    assert {name.split("/")[0] for name in metrics} == {"seen", "val"}
    assert {name.split("/")[1] for name in metrics if name.startswith("val/")} == {"seen", "calibration"}
    assert metrics["seen/mAP"] == metrics["val/seen/mAP"] > 0


def test_the_headline_is_that_of_the_unseen_labels(tiny):
    trainer = Trainer(enable_checkpointing=False, **QUIET)
    trainer.validate(made(tiny, stages=[]), datamodule=Images(), verbose=False)
    assert trainer.callback_metrics["zsl/mAP"] == trainer.callback_metrics["val/zsl/mAP"]
    assert "seen/mAP" not in trainer.callback_metrics
