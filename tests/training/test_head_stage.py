"""The stage that leaves both towers as they are."""

import copy
import json

import pytest
import torch
from commands import SMALL, one_thread
from stopper import ControlC, ended_by
from test_classifier import batch
from test_classifier import trained as with_trainer

from ovml import HeadStage, LabelVocabulary, OVMultiLabelClassifier, PromptStage, UserError, VisionStage
from ovml.cli.main import main
from ovml.distillation import Distillation
from ovml.heads import CosineHead, OptimalTransportHead, QueryHead, TwoStreamHead
from ovml.losses import RankingLoss, ZLPRLoss
from ovml.training.step_rows import StepRows
from ovml.utils.parts import describe

VOCABULARY = LabelVocabulary(("cat", "dog", "red car", "sky"), ("black cat", "sea", "sun", "tree", "house"))
SHORT = {"epochs": 1, "warmup_epochs": 0}
STAGE = "[{class_path: ovml.training.HeadStage, init_args: {epochs: 3, warmup_epochs: 1}}]"
QUERY = [
    "--model.head",
    "ovml.heads.QueryHead",
    "--model.head.num_heads",
    "1",
    "--model.head.hidden_dim",
    "16",
]
ZLPR = [
    "--model.loss",
    "ovml.losses.ZLPRLoss",
    "--model.loss.scale",
    "20",
    "--model.loss.learned",
    "true",
]


class Factor(Distillation):
    """A distillation with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, student, teacher):
        return (self.factor * student.global_embeds - 2 * teacher.global_embeds).square().mean()


def make(tiny, **parts):
    torch.manual_seed(0)
    parts = {"head": QueryHead(2, 16), "loss": ZLPRLoss(20, learned=True), "stages": [HeadStage(**SHORT)], **parts}
    return OVMultiLabelClassifier(tiny, VOCABULARY, **parts)


def features_of(model):
    """Features of the adapted and of the original tower, as a training step has them."""
    kept = StepRows(torch.ones(4, len(VOCABULARY.seen)), model.stage)
    return model.objective._features(model.model, model.teacher, batch(), kept, model.stage)


def steps(model, size=2):
    """A few steps of the stage's optimizer; the names of all that changed."""
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.stage.parameter_groups(model.learning_parts), lr=0.01)
    for _ in range(size):
        optimizer.zero_grad()
        with_trainer(model).training_step(batch(), 0).backward()
        optimizer.step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("distillation", [None, Factor])
def test_head_loss_and_distillation_learn_and_nothing_else(tiny, distillation):
    model = make(tiny, distillation=distillation and distillation())
    parts = {n for n, _ in model.named_parameters() if n.startswith(("model.head.", "objective."))}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == parts
    assert ("objective.distillation.factor" in parts) == (distillation is not None)
    with torch.no_grad():
        features = model.model.encode_images(batch()["pixel_values"])
    assert steps(model) == parts
    with torch.no_grad():
        again = model.model.encode_images(batch()["pixel_values"])
    assert all(torch.equal(a, b) for a, b in zip(features, again, strict=True))
    assert torch.equal(
        model.zero_shot().model.image_encoder(batch()["pixel_values"]).global_embeds, features.global_embeds
    )


def test_the_vision_tower_keeps_no_graph(tiny):
    model = with_trainer(make(tiny))
    student, teacher = features_of(model)
    assert not any(part.requires_grad for part in (*student, *teacher))
    assert all(torch.equal(a, b) for a, b in zip(student, teacher, strict=True))


def test_a_distillation_without_parameters_changes_no_gradient(tiny):
    gradients = []
    for weight in (0.0, 1.0):
        model = with_trainer(make(tiny, distillation_weight=weight))
        model.training_step(batch(), 0).backward()
        gradients.append([p.grad for p in model.model.head.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_after_a_vision_stage_the_tower_stays_as_that_left_it(tiny):
    model = make(tiny, stages=[VisionStage(**SHORT), HeadStage(**SHORT), PromptStage(epochs=1)])
    assert "model.image_encoder.visual_projection.weight" in steps(model)
    model.start_stage(model.stages[1])
    assert all(name.startswith(("model.head.", "objective.loss.")) for name in steps(model))
    student, teacher = features_of(model)
    assert not torch.equal(student.global_embeds, teacher.global_embeds)
    assert not student.global_embeds.requires_grad
    model.start_stage(model.stages[2])
    assert steps(model) == {"model.prompt.context"}


def test_a_head_that_reads_the_original_is_given_it(tiny):
    model = with_trainer(make(tiny, head=OptimalTransportHead(), loss=ZLPRLoss(), distillation_weight=0))
    _, teacher = features_of(model)
    assert teacher is not None
    assert steps(model, 1) == {"model.head.log_temperature", "model.head.log_local_temperature"}


@pytest.mark.parametrize("head", [TwoStreamHead(3), CosineHead()])
def test_nothing_that_learns_is_one_line(tiny, head):
    with pytest.raises(UserError, match=f"stage 'head': neither {type(head).__name__} nor RankingLoss has") as info:
        make(tiny, head=head, loss=RankingLoss(), stages=[VisionStage(**SHORT), HeadStage(**SHORT)])
    assert "\n" not in str(info.value)
    make(tiny, head=head)  # the loss's scale and offset


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_scores_the_same_to_the_last_bit(tiny, tmp_path, dtype):
    model = make(tiny)
    steps(model)
    model.model._label_embeds.clear()  # they are of the old type
    model.to(dtype).save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    pixels = batch()["pixel_values"].to(dtype)
    with torch.no_grad():
        assert torch.equal(again.to(dtype)(pixels), model.eval()(pixels))
    assert list(map(describe, again.stages)) == list(map(describe, model.stages))


def fit(config, root, *arguments):
    small = [*SMALL, "--model.stages", STAGE, *QUERY, *ZLPR, "--trainer.default_root_dir", str(root)]
    return main(["fit", "--config", config, *small, *arguments])


def learned(root):
    checkpoint = torch.load(root / "version_0" / "head" / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"]


def test_a_killed_run_resumes_to_the_same_weights(config, tmp_path, monkeypatch):
    with one_thread():
        assert fit(config, tmp_path / "whole") == 0
        assert fit(config, tmp_path / "cut", *ended_by(ControlC, "head", 1)) == 130
        assert fit(config, tmp_path / "cut", "--ckpt_path", "last") == 0
    whole, resumed = learned(tmp_path / "whole"), learned(tmp_path / "cut")
    assert all(name.startswith(("model.head.", "objective.loss.", "model.prompt.")) for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_fit_by_the_command_on_the_demo(tmp_path, capsys):
    data = ["--data.cache_dir", str(tmp_path / "cache"), "--trainer.enable_progress_bar", "false"]
    assert fit("demo.yaml", tmp_path / "runs", *data, "--trainer.max_epochs", "1") == 0
    run = tmp_path / "runs" / "version_0"
    assert set(json.loads((run / "results.json").read_text())) == {"zero-shot", "head"}
    assert learned(tmp_path / "runs")["model.head.layers.0.query.change"].any()
    assert "run: " in capsys.readouterr().out


def test_nothing_that_learns_is_said_by_the_command(config, tmp_path, capsys):
    parts = ["--model.head", "ovml.heads.CosineHead", "--model.stages", STAGE]
    assert main(["fit", "--config", config, *SMALL, *parts, "--trainer.default_root_dir", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].endswith("take a head such as QueryHead, or another stage")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("head", "distillation", "kept"),
    [
        ("ovml.heads.QueryHead", "ovml.distillation.FeatureL1", 2),
        ("ovml.heads.OptimalTransportHead", "ovml.distillation.FeatureL1", 0),
        ("ovml.heads.QueryHead", "test_head_stage.Factor", 0),
    ],
)
def test_features_are_kept_unless_the_original_s_are_read(config, tmp_path, head, distillation, kept):
    cache = ["--trainer.callbacks+", "ovml.training.callbacks.FeatureCache"]
    cache += ["--trainer.callbacks.cache_dir", str(tmp_path / "cache"), "--data.augment", "false"]
    parts = [
        "--model.head",
        head,
        "--model.distillation",
        distillation,
        *ZLPR,
        "--model.stages",
        STAGE,
        "--trainer.max_epochs",
        "1",
    ]
    arguments = [*SMALL, *parts, *cache, "--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main(["fit", "--config", config, *arguments]) == 0
    assert len(list((tmp_path / "cache").glob("*/features-000.npy"))) == kept
