"""Saving, loading and sharing models."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import save_checkpoint
from my_parts import MaxPatchHead, ShiftStage
from PIL import Image
from transformers import CLIPModel

from ovml import LabelVocabulary, OVMultiLabelClassifier, PromptStage, Tagger, UserError, VisionStage, load_model
from ovml.data import DemoDataModule
from ovml.encoders.checkpoints import load_clip, load_image_processor
from ovml.encoders.image_processor import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from ovml.heads import CosineHead, GlobalHead, Head, LocalHead, TwoStreamHead
from ovml.losses import RankingLoss, ZLPRLoss
from ovml.metrics import NewWords, TemperatureScaling, TextLabels
from ovml.metrics.calibration import Calibration
from ovml.prompts import TemplatePrompt
from ovml.utils import files
from ovml.utils.parts import build, check_importable, describe

LABELS = {"seen": ["cat", "dog"], "unseen": ["black cat"]}
PIXELS = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))


def trained(model):
    """Change all that the stages would change, so that student and teacher differ."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name in model._learned_names:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def scores(model, labels=None):
    with torch.no_grad():
        return model(PIXELS.to(next(model.parameters()).dtype), labels)


@pytest.fixture
def model(tiny):
    return trained(OVMultiLabelClassifier(tiny, LABELS))


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(saved, change):
    config = json.loads((saved / "config.json").read_text())
    change(config["ovml"])
    (saved / "config.json").write_text(json.dumps(config))


def load(name, **parts):
    return OVMultiLabelClassifier.from_pretrained(name, **parts)


def error(name, **parts):
    with pytest.raises(UserError) as info:
        load(name, **parts)
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"head": MaxPatchHead(2.0), "prompt": TemplatePrompt(["a {}", "{} b"]), "loss": RankingLoss(0.5)},
        {"head": LocalHead(2), "stages": [VisionStage(epochs=3, num_layers=1)], "ks": [1], "images": "labelled"},
        {"calibrator": TemperatureScaling("per-label", 3), "protocols": [NewWords(), TextLabels(False)], "ks": [2, 1]},
        {"head": CosineHead(), "stages": [], "labels": None, "distillation_weight": 0.0},
    ],
)
def test_a_loaded_model_scores_the_same_to_the_last_bit(tiny, tmp_path, parts):
    model = trained(OVMultiLabelClassifier(tiny, **{"labels": LABELS, **parts}))
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert not again.training
    for labels in (["cat", "zebra crossing"], *([None] if model.model.vocabulary else [])):
        assert torch.equal(scores(model, labels), scores(again, labels))
    assert again.model.vocabulary == model.model.vocabulary
    assert again.model.image_processor == model.model.image_processor
    assert list(map(describe, again.stages)) == list(map(describe, model.stages))
    assert again.objective.loss.margin == model.objective.loss.margin
    assert again.evaluation.images == model.evaluation.images
    assert again.evaluation.ks == model.evaluation.ks
    assert describe(again.evaluation.calibrator) == describe(model.evaluation.calibrator)
    assert list(again.evaluation.titles) == list(model.evaluation.titles)
    assert again.objective.distillation_weight == model.objective.distillation_weight
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_the_calibration_is_saved_and_goes_with_the_parts_that_it_is_of(model, tmp_path):
    model.model.calibration = Calibration(3.0, -1.0, 0.3, model.model.vocabulary, (0.1, 0.2, 0.3))
    model.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").model.calibration == model.model.calibration
    assert load(tmp_path / "saved", labels=["other"]).model.calibration == model.model.calibration
    assert load(tmp_path / "saved", head=CosineHead()).model.calibration is None
    model.model.calibration = None
    model.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").model.calibration is None
    (tmp_path / "saved" / "calibration.json").write_text('{"slope": 1}')
    assert "calibration.json: not a calibration" in error(tmp_path / "saved")


def test_a_model_saved_in_half_precision_is_loaded_in_full(tiny, tmp_path):
    model = trained(OVMultiLabelClassifier(tiny, LABELS, head=MaxPatchHead(2.0)).to(torch.bfloat16))
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(again.model.head.factor, model.model.head.factor.float())
    assert torch.equal(scores(model), scores(again.to(torch.bfloat16)))


def test_saving_twice_gives_the_same_files(saved, tmp_path):
    load(saved).save_pretrained(tmp_path / "again")
    names = sorted(p.name for p in saved.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "again").iterdir())
    for name in set(names) - {"README.md"}:
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_teacher_is_not_in_the_file_and_nothing_is_there_twice(model, saved):
    from safetensors.torch import load_file

    weights = load_file(saved / "model.safetensors")
    clip = set(load_clip(model.model.clip_name).state_dict())
    assert set(weights) == clip | {"prompt.context"}
    tail = "vision_model.encoder.layers.2.mlp.fc1.weight"
    assert torch.equal(weights[tail], model.model.image_encoder.state_dict()[tail])
    assert not torch.equal(weights[tail], model.teacher.layers[-1].mlp.fc1.weight)


def test_whoever_may_read_one_file_may_read_all(saved):
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


def test_the_folder_is_a_plain_clip_checkpoint_too(model, saved):
    theirs = CLIPModel.from_pretrained(saved).eval()
    with torch.no_grad():
        embeds = theirs.get_image_features(PIXELS).pooler_output
        torch.testing.assert_close(embeds, model.model.image_encoder(PIXELS).global_embeds)
    zero_shot = OVMultiLabelClassifier(str(saved), LABELS)
    assert zero_shot.model.image_processor == model.model.image_processor


def test_training_goes_on_from_a_loaded_model(saved, tmp_path):
    import lightning.pytorch as pl

    model = load(saved)
    batch = {"pixel_values": PIXELS, "labels": torch.tensor([[1, 0, 0], [0, 1, 0]]), "image_id": ["a", "b"]}
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    before = model.model.image_encoder.visual_projection.weight.clone()
    trainer.fit(model, torch.utils.data.DataLoader([batch] * 4, batch_size=None))
    assert not torch.equal(model.model.image_encoder.visual_projection.weight, before)
    trainer.save_checkpoint(tmp_path / "more.ckpt")
    assert torch.equal(scores(load(tmp_path / "more.ckpt")), scores(model.eval()))


def test_arguments_take_the_place_of_what_was_saved(model, saved):
    again = load(saved, labels=["zebra"], head=GlobalHead(), stages=[PromptStage(epochs=1)])
    assert again.model.vocabulary.names == ("zebra",)
    model.model.head = GlobalHead()
    assert torch.equal(scores(again, ["a", "b"]), scores(model, ["a", "b"]))


def test_weights_of_the_loss_are_saved_unless_another_one_is_given(tiny, tmp_path):
    model = trained(OVMultiLabelClassifier(tiny, LABELS, loss=ZLPRLoss(3.0, learned=True)))
    model.save_pretrained(tmp_path / "saved")
    scale = model.objective.loss.log_scale.detach()
    assert scale.exp() != pytest.approx(3)
    assert torch.equal(load(tmp_path / "saved").objective.loss.log_scale, scale)
    other = load(tmp_path / "saved", loss=ZLPRLoss(2.0, learned=True))
    assert other.objective.loss.log_scale.detach().exp() == pytest.approx(2)
    assert other.objective.loss.learned_offset == 0
    assert load(tmp_path / "saved", loss=RankingLoss()).objective.state_dict() == {}
    plain = trained(OVMultiLabelClassifier(tiny, LABELS))
    plain.save_pretrained(tmp_path / "plain")
    assert load(tmp_path / "plain", loss=ZLPRLoss(2.0, learned=True)).objective.loss.scale == 2
    assert torch.equal(scores(other), scores(model))


def test_texts_of_labels_that_share_a_name_are_kept(tiny, tmp_path):
    vocabulary = LabelVocabulary.from_ids(["/m/1", "/m/2"], ["/m/3"], {"/m/1": "é", "/m/2": "cat", "/m/3": "Cat"})
    OVMultiLabelClassifier(tiny, vocabulary).save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").model.vocabulary == vocabulary


# ---------------------------------------------------------------------- other things that can be loaded


def test_plain_clip_checkpoints_are_zero_shot_models(tiny):
    for name in (tiny, "ovml-demo"):
        model = load(name, labels=["cat"])
        assert model.stages == []
        assert not model.training


def test_run_folders_and_checkpoints(tiny, tmp_path):
    model = trained(OVMultiLabelClassifier(tiny, LABELS))
    (tmp_path / "config.yaml").write_text("model: {}\n")
    assert "no checkpoint yet" in error(tmp_path)
    save_checkpoint(model, tmp_path / "prompt" / "last.ckpt")
    for path in (tmp_path, tmp_path / "prompt" / "last.ckpt"):
        assert torch.equal(scores(load(path)), scores(model))
        assert load(path).model.image_processor == model.model.image_processor
    assert "no such checkpoint" in error(tmp_path / "vision" / "last.ckpt")


def test_a_checkpoint_is_read_once(tiny, tmp_path, monkeypatch):
    save_checkpoint(trained(OVMultiLabelClassifier(tiny, LABELS)), tmp_path / "last.ckpt")
    read, load_file = [], torch.load

    def reading(path, **options):
        read.append(path)
        return load_file(path, **options)

    monkeypatch.setattr(torch, "load", reading)
    load(tmp_path / "last.ckpt")
    assert read == [tmp_path / "last.ckpt"]


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 no more"])
def test_the_newest_checkpoint_of_a_run_is_found_beside_damaged_ones(tiny, tmp_path, damage):
    (tmp_path / "config.yaml").write_text("model: {}\n")
    model = trained(OVMultiLabelClassifier(tiny, LABELS))
    for stage in ("vision", "prompt"):
        save_checkpoint(model, tmp_path / stage / "last.ckpt")
    (tmp_path / "prompt" / "last.ckpt").write_bytes(damage)  # the newest: an older one is not taken in its place
    assert f"{tmp_path / 'prompt' / 'last.ckpt'}: not a checkpoint" in error(tmp_path)
    save_checkpoint(model, tmp_path / "prompt" / "last.ckpt")
    (tmp_path / "vision" / "last.ckpt").write_bytes(damage)
    assert torch.equal(scores(load(tmp_path)), scores(model))
    (tmp_path / "prompt" / "last.ckpt").write_bytes(damage)
    assert "not a checkpoint" in error(tmp_path)


def test_a_trained_model_prepares_pictures_as_its_training_did(tiny, tmp_path):
    """What a checkpoint or a saved model tags is what was validated, pixel for pixel."""
    import lightning.pytorch as pl

    data = DemoDataModule(4, 4, batch_size=4)
    published = Preprocessing(resize=60, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    model = OVMultiLabelClassifier(
        tiny, data.vocabulary, preprocessing=published, stages=[VisionStage(epochs=1, warmup_epochs=0)]
    )
    trainer = pl.Trainer(
        max_epochs=1, logger=False, accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False
    )
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    model.save_pretrained(tmp_path / "saved")
    picture = Image.effect_noise((90, 120), 80).convert("RGB")
    assert data.image_processor == published.of(load_image_processor(tiny))
    for found in (model, load(tmp_path / "last.ckpt"), load(tmp_path / "saved")):
        assert found.model.image_processor == data.image_processor
        assert torch.equal(Tagger(found.model).transform(picture), data.image_processor.pixels(picture))


@pytest.mark.parametrize("preprocessing", [Preprocessing(squash=True), Preprocessing(resize=60, std=IMAGENET_STD)])
def test_preprocessing_is_saved_and_can_be_replaced(tiny, tmp_path, preprocessing):
    model = trained(OVMultiLabelClassifier(tiny, LABELS, preprocessing=preprocessing))
    model.save_pretrained(tmp_path / "saved")
    save_checkpoint(model, tmp_path / "last.ckpt")
    other = Preprocessing(mean=IMAGENET_MEAN)
    for name in (tmp_path / "saved", tmp_path / "last.ckpt"):
        own = model.model.image_processor
        assert load(name).model.image_processor == load_model(name).image_processor == own
        replaced = other.of(own if name.is_dir() else load_image_processor(tiny))
        for found in (load(name, preprocessing=other).model, load_model(name, preprocessing=other)):
            assert found.image_processor == replaced


def test_the_resampling_filter_is_saved(model, tmp_path):
    model.model.image_processor = replace(model.model.image_processor, resample=2)
    model.save_pretrained(tmp_path / "saved")
    save_checkpoint(model, tmp_path / "last.ckpt")
    for name in (tmp_path / "saved", tmp_path / "last.ckpt"):
        assert load(name).model.image_processor == model.model.image_processor


def test_a_torch_model_is_loaded_from_every_kind_of_name(tiny, tmp_path):
    model = trained(OVMultiLabelClassifier(tiny, LABELS, head=MaxPatchHead(2.0)))
    model.model.calibration = Calibration(3.0, -1.0, 0.3, model.model.vocabulary, (0.1, 0.2, 0.3))
    (tmp_path / "config.yaml").write_text("model: {}\n")
    save_checkpoint(model, tmp_path / "prompt" / "last.ckpt")
    model.save_pretrained(tmp_path / "saved")
    for name in (tmp_path, tmp_path / "prompt" / "last.ckpt", tmp_path / "saved"):
        found = load_model(str(name))
        assert not found.training
        assert torch.equal(scores(found), scores(model))
        assert found.calibration == model.model.calibration
        assert load_model(name, labels=["other"]).vocabulary.names == ("other",)
    assert load_model(tiny).vocabulary is None


def test_a_checkpoint_names_what_it_lacks(tiny, tmp_path):
    model = OVMultiLabelClassifier(tiny, LABELS, head=OfAnything(torch.zeros(3)))
    save_checkpoint(model, tmp_path / "last.ckpt")
    assert "inner: cannot be saved, it is a Tensor" in error(tmp_path / "last.ckpt")
    given = OfAnything(torch.zeros(3))
    assert torch.equal(scores(load(tmp_path / "last.ckpt", head=given).eval()), scores(model.eval()))

    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del content["state_dict"]["model.prompt.context"]
    torch.save(content, tmp_path / "short.ckpt")
    for read in (load, load_model):
        with pytest.raises(UserError, match=r"short\.ckpt: lacks '(model\.)?prompt\.context'"):
            read(tmp_path / "short.ckpt", head=given)
    content["ovml"].update(format=99, version="9.9")
    torch.save(content, tmp_path / "newer.ckpt")
    assert "written by ovml 9.9); upgrade ovml" in error(tmp_path / "newer.ckpt")


def test_what_is_not_there_is_said_in_one_line(tmp_path):
    assert "check the name and the network" in error("nobody/no-such-model")
    assert "not a complete CLIP checkpoint" in error(tmp_path)


# ---------------------------------------------------------------------- broken and foreign files


def test_a_broken_weight_file(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors: cannot be read" in error(saved)
    file.unlink()
    assert "model.safetensors: cannot be read" in error(saved)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prompt.context", "lacks 'prompt.context'"),
        ("vision_model.post_layernorm.bias", "lacks 'vision_model.post_layernorm.bias'"),
    ],
)
def test_missing_weights_are_named(saved, name, message):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    weights["head.more"] = weights.pop(name)
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    assert message in error(saved)


def test_weights_that_no_part_takes_and_other_shapes(saved):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    save_file({**weights, "head.more": torch.ones(1)}, saved / "model.safetensors", metadata={"format": "pt"})
    assert "has 'head.more', which no part takes" in error(saved)
    save_file({**weights, "prompt.context": torch.ones(1, 2)}, saved / "model.safetensors", metadata={"format": "pt"})
    assert "cannot be read" in error(saved)


@pytest.mark.parametrize("number", [99, 2, 0, -1, "1", None, [1]])
def test_an_unknown_format_says_so(saved, number):
    edit(saved, lambda config: config.update(format=number, version="9.9"))
    assert "written by ovml 9.9); upgrade ovml" in error(saved)
    edit(saved, lambda config: config.pop("format"))
    assert "written by ovml 9.9); upgrade ovml" in error(saved)


def test_a_configuration_that_is_no_json_says_so(saved):
    (saved / "config.json").write_text("{")
    assert "config.json: cannot be read" in error(saved)


@pytest.mark.parametrize(
    ("path", "init_args", "message"),
    [
        ("os.system", {}, "cannot be made; give a subclass of Head"),
        ("subprocess.Popen", {"args": ["touch", "x"]}, "cannot be made; give a subclass of Head"),
        ("ovml.heads.base.Head", {}, "cannot be made; give a subclass of Head"),
        ("ovml.losses.ranking.RankingLoss", {}, "cannot be made; give a subclass of Head"),
        ("no_such_package.MyHead", {}, "install the package that has it"),
        ("ovml.heads.two_stream.NoSuchHead", {}, "no class 'ovml.heads.two_stream.NoSuchHead' here"),
        ("antigravity.MyHead", {}, "no class 'antigravity.MyHead' here"),
        ("../evil.MyHead", {}, "no class"),
        ("", {}, "no class"),
        (3, {}, "expected class_path and plain init_args"),
        ("ovml.heads.local.LocalHead", {"no_such": 1}, "does not take {'no_such': 1}"),
        ("ovml.heads.local.LocalHead", [1], "expected class_path and plain init_args"),
    ],
)
def test_only_subclasses_of_the_base_classes_are_made(saved, path, init_args, message):
    edit(saved, lambda config: config.update(head={"class_path": path, "init_args": init_args}))
    before = set(sys.modules)
    assert message in error(saved)
    assert not {"antigravity", "evil", "no_such_package"} & (set(sys.modules) - before)
    assert load(saved, head=GlobalHead()).model.vocabulary  # what is replaced is not even looked at


def test_a_module_that_lacks_the_class_is_not_run(saved, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "side_effect.py").write_text("raise SystemExit('ran')\n")
    (tmp_path / "broken_head.py").write_text("raise ImportError('needs a library')\nclass MyHead: ...\n")
    edit(saved, lambda config: config.update(head={"class_path": "side_effect.MyHead"}))
    assert "no class 'side_effect.MyHead' here" in error(saved)
    edit(saved, lambda config: config.update(head={"class_path": "broken_head.MyHead"}))
    assert "broken_head cannot be imported (ImportError: needs a library)" in error(saved)


def test_a_users_class_is_imported_by_its_path(tiny, tmp_path, monkeypatch):
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "heads.py").write_text(Path(sys.modules["my_parts"].__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    description = {"class_path": "their_package.heads.MaxPatchHead", "init_args": {"factor": 3.0}}
    assert build(description, Head, "here").factor.item() == 3.0


# ---------------------------------------------------------------------- parts that cannot be described


class NotKept(CosineHead):
    def __init__(self, width: int = 3) -> None:
        super().__init__()


class Changed(CosineHead):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width + 1


class OfAnother(CosineHead):
    def __init__(self, inner: Head | None = None) -> None:
        super().__init__()
        self.inner = inner


class OfAnything(CosineHead):
    def __init__(self, inner=None) -> None:
        super().__init__()
        self.inner = inner


class Swallowed(TwoStreamHead):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)


class Random(CosineHead):
    def __init__(self) -> None:
        super().__init__()
        self.draw = float(torch.rand(()))


@pytest.mark.parametrize("head", [NotKept(4), Changed(4), OfAnother(Changed(5)), Swallowed(top_k=2)], ids=repr)
def test_arguments_are_remembered_however_a_part_keeps_them(model, tmp_path, head):
    model.model.head = head
    model.save_pretrained(tmp_path / "new")
    again = load(tmp_path / "new").model.head
    assert describe(again) == describe(head)
    assert getattr(again, "width", None) == getattr(head, "width", None)
    assert getattr(getattr(again, "inner", None), "width", None) == getattr(getattr(head, "inner", None), "width", None)


def test_what_became_of_an_argument_since_counts():
    head = TwoStreamHead(top_k=2)
    head.top_k = 5
    assert describe(head)["init_args"] == {"top_k": 5, "normalize": True}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (OfAnything(torch.zeros(3)), "inner: cannot be saved, it is a Tensor"),
        (Random(), "made again from {} it is another one"),
    ],
)
def test_a_part_that_cannot_be_described_is_an_error_before_anything_is_written(model, tmp_path, head, message):
    model.model.head = head
    with pytest.raises(UserError, match=message) as info:
        model.save_pretrained(tmp_path / "new")
    assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_users_stage_adds_to_the_tower_is_kept_without_the_other_stages(tiny, tmp_path):
    """A saved model is used where the classes of its other stages cannot be imported."""
    model = trained(OVMultiLabelClassifier(tiny, LABELS, stages=[ShiftStage(epochs=1, warmup_epochs=0), PromptStage()]))
    assert not torch.equal(scores(model), scores(OVMultiLabelClassifier(tiny, LABELS).eval()))
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(scores(load(tmp_path / "saved")), scores(model))
    edit(tmp_path / "saved", lambda saved: saved["training"]["stages"][1].update(class_path="gone.GoneStage"))
    used = load(tmp_path / "saved", stages=[])
    assert torch.equal(scores(used), scores(model))
    used.save_pretrained(tmp_path / "twice")
    assert torch.equal(scores(load(tmp_path / "twice", stages=[])), scores(model))
    assert "gone" in error(tmp_path / "saved")


def test_a_class_inside_a_function_cannot_be_saved():
    class Local(CosineHead):
        pass

    with pytest.raises(UserError, match="Local: defined inside of a function, so .* at the top of a file"):
        check_importable(Local())
    assert describe(Swallowed(top_k=16))["init_args"] == {"top_k": 16}
    assert describe(MaxPatchHead(0.5))["init_args"] == {"factor": 0.5}
    assert describe(TemplatePrompt("a {}"))["init_args"] == {"templates": ["a {}"]}


# ---------------------------------------------------------------------- the folder


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_stops_leaves_what_was_there(model, saved, monkeypatch, stop):
    import safetensors.torch

    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def fail(*_, **__):
        raise stop

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    for folder in (saved, saved.parent / "new"):
        with pytest.raises(UserError if isinstance(stop, OSError) else KeyboardInterrupt):
            model.save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed")
def test_a_kill_between_two_renames_loses_no_model(model, saved, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda *_: False)  # as on a file system that cannot
    if not (pid := os.fork()):
        rename = os.replace
        os.replace = lambda one, other: rename(one, other) if Path(one) == saved else os._exit(9)
        with files.atomic_write(saved, replace_folder=True) as beside:
            beside.mkdir()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert not saved.exists()
    assert torch.equal(scores(load(saved)), scores(model))
    model.save_pretrained(saved)
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


def test_other_files_are_never_removed(model, saved, tiny, tmp_path):
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(notes.txt\); give a new or empty folder"):
        model.save_pretrained(saved)
    with pytest.raises(UserError, match="holds other files"):
        model.save_pretrained(tiny)  # a CLIP checkpoint: the same names, but not ours
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    assert (saved / "notes.txt").read_text() == "mine"


def test_a_saved_model_is_replaced_and_its_card_kept(model, saved, tmp_path):
    (saved / "README.md").write_text("my own words")
    model.model.vocabulary = None
    model.save_pretrained(saved)
    assert not (saved / "labels.json").exists()
    assert (saved / "README.md").read_text() == "my own words"
    model.save_pretrained(saved, metrics={"zsl/mAP": 0.5})
    assert "| ZSL | this model | 50.0 |" in (saved / "README.md").read_text()
    (tmp_path / "link").symlink_to(saved, target_is_directory=True)
    model.model.vocabulary = LabelVocabulary.from_any(["cat"])
    model.save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (saved / "labels.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "saved"]
    model.save_pretrained(tmp_path / "deep" / "below")
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")


# ---------------------------------------------------------------------- card and Hub


def test_the_card_shows_the_runs_test_results(model, tmp_path):
    from huggingface_hub import ModelCard

    rows = {"zero-shot": {"zsl/mAP": 0.25, "seen/mAP": 0.5}, "prompt": {"zsl/mAP": 0.375, "zsl/F1@3": 0.341}}
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match="no metrics there"):
        model.save_pretrained(tmp_path / "saved", metrics=run)
    (run / "results.json").write_text("{}")
    (run / "test_results.json").write_text(json.dumps(rows))
    model.save_pretrained(tmp_path / "saved", metrics=run, repo_id="me/my-model")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert card.data.library_name == "ovml"
    assert "multi-label" in card.data.tags
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    for line in (
        "# my-model",
        "| probabilities | not calibrated |",
        'from_pretrained("me/my-model")',
        "| labels | 2 seen, 1 unseen |",
        "Percent of the test split",
        "| labels | model | mAP | F1@3 |",
        "| ZSL | zero-shot CLIP | 25.0 |  |",
        "| ZSL | prompt stage | 37.5 | 34.1 |",
        "| seen | zero-shot CLIP | 50.0 |  |",
    ):
        assert line in card.content, line


def test_names_in_the_card_are_text(model, tmp_path):
    rows = {"<script>alert(1)</script>": {"zsl/mAP": 0.5}, "a | b\n# c": {"zsl/mAP": 0.5}, "[x](y) *z*": {"<i>/mAP": 1}}
    folder = tmp_path / 'my <b>model `x` "y"\n# z'
    model.save_pretrained(folder, metrics=rows)
    card = (folder / "README.md").read_text()
    prose, code = re.sub("```python.*?```|\n    ovml tag.*?\n", "", card, flags=re.DOTALL), card.split("```")[1]
    assert not re.search("<[a-z]", prose)
    for line in (
        r'# my &lt;b&gt;model \`x\` "y" \# z',
        r"| ZSL | &lt;script&gt;alert(1)&lt;/script&gt; | 50.0 |",
        r"| ZSL | a \| b \# c | 50.0 |",
        r"| &lt;i&gt; | \[x\](y) \*z\* | 100.0 |",
    ):
        assert line in card.splitlines(), card
    (call,) = re.findall(r"from_pretrained\((.*)\)", code)
    assert json.loads(call) == folder.name


@pytest.mark.parametrize("rows", [[], [{}], {"a": {"zsl/mAP": "x"}}, {"a": [1]}, "7", "[]"])
def test_what_holds_no_metrics_is_named(model, tmp_path, rows):
    if isinstance(rows, str):
        (tmp_path / "results.json").write_text(rows)
        rows = tmp_path / "results.json"
    with pytest.raises(UserError, match="metrics: expected rows"):
        model.save_pretrained(tmp_path / "saved", metrics=rows)


@pytest.mark.parametrize("names", [("results.json",), ("results.json", "test_results.json")])
def test_the_split_of_the_results_is_said(model, tmp_path, names):
    (tmp_path / "run").mkdir()
    for number, name in enumerate(names):
        (tmp_path / "run" / name).write_text(json.dumps({"prompt": {"zsl/mAP": 0.5 + number / 4}}))
    model.save_pretrained(tmp_path / "saved", metrics=tmp_path / "run")
    card = (tmp_path / "saved" / "README.md").read_text()
    split, value = ("test", "75.0") if len(names) > 1 else ("validation", "50.0")
    assert f"Percent of the {split} split" in card
    assert f"| ZSL | prompt stage | {value} |" in card


def test_the_card_says_whether_probabilities_are_calibrated(model, tmp_path):
    model.model.calibration = Calibration(3.0, -1.0, 0.3, model.model.vocabulary)
    model.save_pretrained(tmp_path / "saved")
    assert "| probabilities | calibrated |" in (tmp_path / "saved" / "README.md").read_text()


def base_models(folder):
    """The base model in `config.json` and in the card."""
    from huggingface_hub import ModelCard

    config = json.loads((folder / "config.json").read_text())["ovml"]
    return config["base_model"], ModelCard.load(folder / "README.md").data.base_model


def test_the_base_model_is_known_after_any_number_of_saves(model, tmp_path):
    model.model.clip_name = "openai/clip-vit-base-patch16"
    model.save_pretrained(tmp_path / "once")
    load(tmp_path / "once").save_pretrained(tmp_path / "twice")
    load(tmp_path / "twice").save_pretrained(tmp_path / "thrice")
    for name in ("once", "twice", "thrice"):
        assert base_models(tmp_path / name) == ("openai/clip-vit-base-patch16",) * 2


def test_a_local_folder_is_no_base_model_on_the_hub(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, "mine/clip")
    OVMultiLabelClassifier("mine/clip", LABELS).save_pretrained("saved")
    assert base_models(tmp_path / "saved") == (None, None)


class FakeHub:
    """Keeps what is uploaded in a folder, and gives it back."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.calls = folder, []
        monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", lambda token=None: self)
        monkeypatch.setattr("ovml.saving.load.hf_hub_download", self.download)
        monkeypatch.setattr("ovml.saving.load.snapshot_download", self.snapshot)

    def create_repo(self, repo_id, **kwargs):
        self.calls.append(("create", kwargs["private"]))
        return self

    repo_id = "me/my-model"

    def upload_folder(self, folder_path, repo_id, **kwargs):
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"https://hub/{repo_id}"

    def download(self, name, file, **options):
        self.options = [options]
        return str(self.folder / name / file)

    def snapshot(self, name, allow_patterns, **options):
        from fnmatch import fnmatch

        self.options.append(options)
        for path in (self.folder / name).iterdir():
            asked = any(fnmatch(path.name, pattern) for pattern in allow_patterns)
            assert asked == (path.suffix != ".bin"), path
        return str(self.folder / name)


def test_push_and_load_from_the_hub(model, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path, monkeypatch)
    url = model.push_to_hub("me/my-model", private=True, metrics={"prompt": {"zsl/mAP": 0.375}})
    assert url == "https://hub/me/my-model"
    assert hub.calls == [("create", True)]
    assert "| ZSL | prompt stage | 37.5 |" in (tmp_path / "me/my-model/README.md").read_text()
    assert torch.equal(scores(load("me/my-model")), scores(model))
    assert torch.equal(scores(load("me/my-model", revision="main")), scores(model))


OF_THE_HUB = {"revision": "v1", "token": "x", "cache_dir": "y", "force_download": True, "local_files_only": True}


@pytest.mark.parametrize("option", OF_THE_HUB)
def test_options_of_a_download_reach_the_hub(model, tmp_path, monkeypatch, option):
    hub = FakeHub(tmp_path, monkeypatch)
    model.push_to_hub("me/my-model")
    (tmp_path / "me/my-model" / "spiece.model").write_text("")  # SigLIP's tokenizer
    load("me/my-model", **{option: OF_THE_HUB[option]}, labels=["other"])
    assert hub.options == [{option: OF_THE_HUB[option]}] * 2


def test_a_plain_clip_of_another_revision_is_downloaded_whole(tiny, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path, monkeypatch)
    shutil.copytree(tiny, tmp_path / "me" / "clip")
    (tmp_path / "me" / "clip" / "README.md").write_text("a plain CLIP")
    (tmp_path / "me" / "clip" / "pytorch_model.bin").write_text("not asked for")
    model = load("me/clip", revision="v1", labels=["cat"])
    assert hub.options == [{"revision": "v1"}] * 2
    assert model.stages == []


def test_the_name_of_the_repository_stands_in_the_card(model, tmp_path, monkeypatch):
    FakeHub(tmp_path, monkeypatch)
    model.push_to_hub("me/my-model")
    assert 'from_pretrained("me/my-model")' in (tmp_path / "me/my-model/README.md").read_text()


def test_no_repository_is_made_for_metrics_that_are_none(model, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path, monkeypatch)
    for metrics in (tmp_path / "none.json", [1, 2], {"zsl/mAP": "high"}):
        with pytest.raises(UserError, match="metrics"):
            model.push_to_hub("me/my-model", metrics=metrics)
    assert hub.calls == []


def test_no_repository_is_made_for_a_model_that_cannot_be_saved(model, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path, monkeypatch)
    model.model.head = OfAnything(torch.zeros(3))
    with pytest.raises(UserError, match="cannot be saved"):
        model.push_to_hub("me/my-model")
    assert hub.calls == []


def test_a_push_without_network_says_what_to_do(model):
    with pytest.raises(UserError, match="hf auth login") as info:
        model.push_to_hub("me/my-model")
    assert "\n" not in str(info.value)
    with pytest.raises(UserError, match="did not take the model"):
        model.push_to_hub("not a name!")
