"""RAM as published beside the rest of ovml: runs, checkpoints, saved models, export, other commands."""

import copy
import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from commands import SMALL, ovml_here
from encoders.test_siglip import letters, sizes
from safetensors import safe_open
from stopper import ControlC, ended_by
from transformers import CLIPModel, SiglipModel
from tuned import PIXELS, VOCABULARY, scores, trained

from ovml import OVMultiLabelClassifier, PromptStage, Tagger, UserError, VisionStage
from ovml.encoders import ImageEncoder, LabelDependentFeatures
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.heads import OptimalTransportHead, RAMHead, TwoStreamHead
from ovml.inference.explain import explain
from ovml.inference.export import export_model
from ovml.inference.patches import find_labels
from ovml.losses import MultiMatchingLoss
from ovml.prompts import DeepPrompt, TemplatePrompt
from ovml.training import LadderStage, RAMStage
from ovml.training.optim import AdamWAndSGD
from ovml.utils.images import load_image
from ovml.utils.parts import describe

PLAIN = RAMStage(epochs=3, num_layers=2, num_tokens=3)
SHORT = RAMStage(epochs=3, num_layers=1, num_tokens=0, path_layers=2)
STAGES = [PLAIN, SHORT]


def make(clip, stage=PLAIN, **parts):
    torch.manual_seed(0)
    default = {"head": RAMHead(0.02), "loss": MultiMatchingLoss(), "prompt": DeepPrompt(num_layers=1)}
    parts = {**default, "distillation_weight": 0.0, "stages": [copy.deepcopy(stage)], **parts}
    return OVMultiLabelClassifier(clip, VOCABULARY, **parts)


def learned(clip, stage=PLAIN, **parts):
    """A model with other weights and other statistics than a new one, in evaluation mode."""
    model = trained(make(clip, stage, **parts))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += torch.rand_like(buffer)
    return model.eval()


def batch():
    return {"pixel_values": PIXELS, "labels": torch.tensor([[1, 0, 0], [0, 1, 1]], dtype=torch.int8)}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_learns_and_nothing_else(tiny, stage, checkpointing):
    model = make(tiny, stage, gradient_checkpointing=checkpointing)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    added = {n for n in learning if ".local_path." in n or n.endswith(".adapt_tokens")}
    assert learning - added == {"model.head.tau_global", "model.head.tau_local", "model.prompt.tokens"}
    assert len(added) == stage.num_layers * (14 + bool(stage.num_tokens))
    found = model.objective(model.model, model.teacher, batch(), model.stage)
    found.total.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == learning


def test_frozen_towers_stay_as_they_are_and_batch_norms_follow_the_stage(tiny):
    model = make(tiny, stages=[copy.deepcopy(PLAIN), PromptStage(1)])
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(norms) == 4
    assert all(norm.training for norm in norms)
    assert not model.model.image_encoder.vision_model.encoder.layers[0].base_layer.training
    model.start_stage("prompt")
    assert not any(norm.training for norm in norms)
    model.eval()
    model.start_stage("ram")  # a model that was loaded for use, trained again
    assert all(norm.training for norm in norms)


def test_scores_go_by_the_labels_scored_together(tiny):
    model = learned(tiny, head=TwoStreamHead(2, normalize=False)).model
    with torch.no_grad():
        both, one = model(PIXELS, ["cat", "dog"]), model(PIXELS, ["cat"])
        features = model.encode_images(PIXELS)
    assert isinstance(features, LabelDependentFeatures)
    assert not torch.allclose(both[:, :1], one, atol=1e-4)
    with torch.no_grad():
        embeds = model.embed_labels(["cat", "dog"])
        torch.testing.assert_close(model.head(features.for_labels(embeds), embeds), both)


def test_explanations_and_tags_are_of_the_model_s_scores(tiny, picture):
    model = learned(tiny).model
    tagger = Tagger(model, top_k=None)
    image = load_image(str(picture))
    _, evidence = find_labels(tagger, image)
    tags = tagger.predict(str(picture))
    assert [found.label for found in evidence] == [tag.label for tag in tags]
    assert [found.score for found in evidence] == pytest.approx([tag.score for tag in tags], abs=1e-5)
    assert explain(model, image, top_k=2).mode == "RGB"


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_it_is_exported(tiny, name, tmp_path):
    """Checked for other numbers of images and labels: the file's patches depend on the labels that it is given."""
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    model = learned(tiny, head=RAMHead(0.02, iterations=3)).model  # each iteration is a part of the graph
    assert export_model(model, tmp_path / name).difference < 1e-4


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_what_was_added_with_its_statistics(tiny, stage, tmp_path):
    model = learned(tiny, stage)
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    names = {n for n in checkpoint["state_dict"] if n.startswith("model.image_encoder")}
    assert all(".local_path." in name or name.endswith(".adapt_tokens") for name in names)
    assert sum(name.endswith("running_var") for name in names) == 2 * stage.num_layers
    assert "model.head.clip_scale" in checkpoint["state_dict"]
    torch.save(checkpoint, tmp_path / "x.ckpt")
    again = make(tiny, stage).eval()
    assert not torch.equal(scores(again), scores(model))
    again.load_learned(tmp_path / "x.ckpt")
    assert torch.equal(scores(again), scores(model))
    with pytest.raises(UserError, match="made with head|which no part takes|lacks"):
        OVMultiLabelClassifier(tiny, VOCABULARY).load_learned(tmp_path / "x.ckpt")


@pytest.mark.parametrize("stage", STAGES)
def test_saved_it_scores_the_same_to_the_last_bit(tiny, stage, tmp_path):
    model = learned(tiny, stage)
    model.model.head.set_logit_scale(77.0)  # it has taken the CLIP's already
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    assert torch.equal(scores(again), scores(model))
    assert list(map(describe, again.stages)) == list(map(describe, model.stages))
    used = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved", stages=[])
    used.save_pretrained(tmp_path / "twice")
    twice = OVMultiLabelClassifier.from_pretrained(tmp_path / "twice")
    assert torch.equal(scores(twice), scores(model))
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        names = {name for name in file.keys() if not name.startswith(("prompt.", "head."))}  # noqa: SIM118
    added = {name for name in names if name.startswith("local_path.") or name.endswith(".adapt_tokens")}
    assert names - added == set(load_clip(tiny).state_dict())
    plain, original = (
        ImageEncoder(clip) for clip in (CLIPModel.from_pretrained(tmp_path / "saved").eval(), load_clip(tiny))
    )
    with torch.no_grad():
        assert torch.equal(plain(PIXELS).patch_embeds, original(PIXELS).patch_embeds)


@pytest.mark.parametrize("stage", STAGES)
def test_zero_shot_is_the_original_clip(tiny, stage):
    model, original = learned(tiny, stage), ImageEncoder(load_clip(tiny))
    with torch.no_grad():
        got = model.zero_shot().model.encode_images(PIXELS)
        assert torch.equal(got.global_embeds, original(PIXELS).global_embeds)
    again = learned(tiny, stage, stages=[copy.deepcopy(stage)])
    teacher = again.teacher(again.model.image_encoder.trunk(PIXELS, stage.num_layers))
    torch.testing.assert_close(teacher.patch_embeds, got.patch_embeds)


def test_the_teacher_of_a_model_that_is_trained_again_is_the_original_s(tiny, tmp_path):
    learned(tiny).save_pretrained(tmp_path / "saved")
    again, new = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved"), make(tiny)
    with torch.no_grad():
        teachers = [m.teacher(m.model.image_encoder.trunk(PIXELS, PLAIN.num_layers)) for m in (again, new)]
    for got, expected in zip(*teachers, strict=True):
        assert torch.equal(got, expected)


def test_another_head_on_a_saved_model_has_the_clip_s_scale(tiny, tmp_path):
    clip = load_clip(tiny)
    clip.logit_scale.data.fill_(3.0)
    model = OVMultiLabelClassifier(clip, VOCABULARY, tokenizer=load_tokenizer(tiny))
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved", head=RAMHead())
    assert float(again.model.head.scale) == pytest.approx(math.exp(3.0))
    assert torch.equal(CLIPModel.from_pretrained(tmp_path / "saved").logit_scale, clip.logit_scale)


def test_compiled_blocks_are_the_same(tiny, monkeypatch):
    model = learned(tiny)
    plain = scores(model)
    monkeypatch.setattr("ovml.encoders.execution._compiled", cache(lambda block: torch.compile(block, backend="eager")))
    compiled = make(tiny, compile=True).eval()
    compiled.load_state_dict(model.state_dict())
    torch.testing.assert_close(scores(compiled), plain, atol=1e-5, rtol=1e-5)


def test_half_precision(tiny):
    model = learned(tiny).to(torch.bfloat16)
    assert scores(model).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert scores(model.float()).isfinite().all()


def test_other_parts_take_part(tiny):
    """With ovml's own head and prompt the stage trains the ladder and their parameters."""
    model = make(tiny, head=OptimalTransportHead(), prompt=TemplatePrompt("a {}"))
    model.objective(model.model, model.teacher, batch(), model.stage).total.backward()
    groups = model.stage.parameter_groups(model.learning_parts)
    assert [group["name"] for group in groups] == ["adapters", "temperatures", "tokens"]
    assert all(p.grad is not None for group in groups for p in group["params"])


def test_images_without_a_label_take_part_if_they_are_kept(tiny):
    targets = torch.tensor([[1, 0, 0], [0, 0, 0]], dtype=torch.int8)
    without, losses = {"pixel_values": PIXELS, "labels": targets}, []
    for keep in (False, True):
        model = make(tiny, RAMStage(num_layers=2, keep_unlabelled=keep))
        found = model.objective(model.model, model.teacher, without, model.stage)
        assert found.images == 1 + keep
        losses.append(float(found.total.detach()))
    assert losses[0] != losses[1]


def test_an_optimizer_of_two_kinds_goes_on_from_its_state():
    def run(steps, optimizer, weights):
        for step in steps:
            optimizer.zero_grad()
            sum((w * w).sum() * (1 + step) for w in weights).backward()
            optimizer.step()

    def two():
        weights = [torch.nn.Parameter(torch.arange(1.0, 4)) for _ in range(2)]
        return weights, AdamWAndSGD([{"params": weights[:1]}, {"params": weights[1:], "momentum": 0.9, "lr": 1e-2}])

    weights, whole = two()
    run(range(6), whole, weights)
    cut_weights, cut = two()
    run(range(3), cut, cut_weights)
    again_weights, again = two()
    for one, other in zip(again_weights, cut_weights, strict=True):
        one.data.copy_(other.data)
    again.load_state_dict(copy.deepcopy(cut.state_dict()))
    run(range(3, 6), again, again_weights)
    assert all(torch.equal(one, other) for one, other in zip(weights, again_weights, strict=True))
    alone = [torch.nn.Parameter(torch.arange(1.0, 4)) for _ in range(2)]
    for weight, optimizer in zip(
        alone, (torch.optim.AdamW(alone[:1]), torch.optim.SGD(alone[1:], 1e-2, momentum=0.9)), strict=True
    ):
        run(range(6), optimizer, [weight])
    assert all(torch.equal(one, other) for one, other in zip(weights, alone, strict=True))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_mixed_precision_and_a_scaled_loss(tiny, kind):
    """As `16-mixed` trains: steps move all that learns, and one with infinite gradients moves nothing."""
    model = make(tiny)
    optimizer = model.stage.optimizer(model.stage.parameter_groups(model.learning_parts))
    scaler, learning = torch.amp.GradScaler("cpu"), [p for group in optimizer.param_groups for p in group["params"]]

    def step(factor):
        before = [p.detach().clone() for p in learning]
        optimizer.zero_grad()
        with torch.autocast("cpu", kind):
            found = model.objective(model.model, model.teacher, batch(), model.stage)
        scaler.scale(found.total * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        return [not torch.equal(one, other) for one, other in zip(before, learning, strict=True)]

    assert not any(step(torch.inf))
    assert all(step(1.0))
    assert all(p.isfinite().all() for p in learning)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (lambda: [RAMStage(num_layers=4)], "from 0 to 3, the tower's blocks; got 4"),
        (lambda: [RAMStage(path_layers=4)], "from 0 to 3, the tower's blocks; got 4"),
        (lambda: [RAMStage(token_lr=0.0)], "token_lr"),
        (lambda: [RAMStage(momentum=-1.0)], "momentum"),
        (lambda: [RAMStage(), VisionStage()], "'ram' and 'vision' change the same tower"),
        (lambda: [LadderStage(), RAMStage()], "'ladder' and 'ram' change the same tower"),
    ],
)
def test_wrong_arguments_end_in_one_line(tiny, stages, message):
    with pytest.raises(UserError, match=message) as info:
        OVMultiLabelClassifier(tiny, VOCABULARY, stages=stages())
    assert "\n" not in str(info.value)


def test_a_stage_that_changes_some_of_the_adapted_blocks_is_refused(tiny, tmp_path):
    learned(tiny).save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="last 2 blocks have its tokens; a stage that changes 1 of them") as info:
        OVMultiLabelClassifier.from_pretrained(tmp_path / "saved", stages=[VisionStage(num_layers=1)])
    assert "\n" not in str(info.value)


def test_siglip_has_no_such_path():
    with pytest.raises(UserError, match="this tower is siglip; use LoRAStage") as info:
        make(SiglipModel(sizes()).eval(), tokenizer=letters(), prompt=TemplatePrompt())
    assert "\n" not in str(info.value)


def checkpoint(root, stage="ram"):
    return torch.load(root / "version_0" / stage / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A run of RAM with its average and a prompt stage after it, an unbroken one and one that was cut and resumed."""
    root = tmp_path_factory.mktemp("ram")
    content = yaml.safe_load(Path(config).read_text())
    stages = [
        {"class_path": "RAMStage", "init_args": {"epochs": 2, "warmup_epochs": 1, "num_layers": 2, "num_tokens": 2}},
        {"class_path": "PromptStage", "init_args": {"epochs": 1}},
    ]
    content["model"] = {
        "clip": content["model"]["clip"],
        "stages": stages,
        "head": {"class_path": "RAMHead", "init_args": {"local_temperature": 0.002}},
        "prompt": {"class_path": "DeepPrompt", "init_args": {"num_layers": 2}},
        "loss": "MultiMatchingLoss",
        "distillation_weight": 0.0,
    }
    average = {"decay": 0.5, "each_epoch": True, "copied": ["model.head.tau_global"]}
    content["trainer"]["callbacks"] = [
        {"class_path": "LearnedEMA", "init_args": average},
        {"class_path": "FeatureCache", "init_args": {"cache_dir": str(root)}},
    ]
    (root / "run.yaml").write_text(yaml.safe_dump(content))
    fit = ["fit", "--config", str(root / "run.yaml"), *SMALL, "--trainer.limit_train_batches", "2"]
    assert ovml_here(*fit, "--trainer.default_root_dir", str(root / "whole")) == 0
    cut = [*fit, "--trainer.default_root_dir", str(root / "cut")]
    assert ovml_here(*cut, *ended_by(ControlC, "ram", 1)) == 130
    assert ovml_here(*cut, "--ckpt_path", "last") == 0
    return root


def test_a_cut_run_resumes_to_the_same_weights_and_averages(run):
    whole, resumed = checkpoint(run / "whole"), checkpoint(run / "cut")
    averages = [found["callbacks"] for found in (whole, resumed)]
    for found, other in (
        (whole["state_dict"], resumed["state_dict"]),
        *[[next(v for k, v in found.items() if "LearnedEMA" in k)["weights"] for found in averages]],
    ):
        assert found.keys() == other.keys()
        assert all(torch.equal(found[name], other[name]) for name in found)
    statistics = [name for name in whole["state_dict"] if name.endswith("running_var")]
    weights = next(v for k, v in averages[0].items() if "LearnedEMA" in k)["weights"]
    assert len(statistics) == 4
    assert all(not torch.equal(weights[name], whole["state_dict"][name]) for name in statistics)
    assert torch.equal(weights["model.head.tau_global"], whole["state_dict"]["model.head.tau_global"])
    assert not torch.equal(weights["model.head.tau_local"], whole["state_dict"]["model.head.tau_local"])


def test_what_was_validated_is_what_the_run_loads(run, tmp_path):
    folder = run / "whole" / "version_0"
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"zero-shot", "ram", "prompt"}
    assert ovml_here("validate", "--ckpt_path", str(folder), "--trainer.enable_progress_bar", "false") == 0
    again = json.loads((folder / "validate_results.json").read_text())
    for stage, metrics in results.items():
        assert again[stage] == pytest.approx(metrics, abs=1e-6, nan_ok=True)
    model = OVMultiLabelClassifier.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(scores(OVMultiLabelClassifier.from_pretrained(tmp_path / "saved", stages=[])), scores(model))


def test_an_unknown_name_to_copy_is_one_line(run, capsys):
    arguments = ["fit", "--config", str(run / "run.yaml"), *SMALL, "--trainer.default_root_dir", str(run / "bad")]
    copied = "[{class_path: LearnedEMA, init_args: {copied: [head.tau]}}]"
    assert ovml_here(*arguments, "--trainer.callbacks", copied) == 2
    assert "LearnedEMA: copied: the model has no weight 'head.tau'" in capsys.readouterr().err
