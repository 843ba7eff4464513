"""Patch sources, background names and fitted heads in whole models: scored, saved, exported, trained, fitted."""

import json

import pytest
import torch
from commands import SMALL, ovml_here
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from ovml import OpenVocabularyModel, Tagger, UserError, load_model
from ovml.encoders import ImageEncoder
from ovml.encoders.adapters import Ladder, VisualPrompts
from ovml.encoders.sources import ITACLIP, SCCLIP, SCLIP, CLIPSurgery, MaskCLIP, PlainPatches
from ovml.heads import (
    DualCoOpHead,
    GaussianHead,
    GlobalHead,
    PatchSoftmaxHead,
    PromptFusionHead,
    RAMHead,
    StandardizedHead,
)
from ovml.inference.adapt import Adapted, adapt
from ovml.inference.export import Scorer
from ovml.saving import save_model

LABELS = ["cat", "dog", "bee"]
SOURCES = {"MaskCLIP": MaskCLIP(), "SCLIP": SCLIP(), "ITACLIP": ITACLIP([1, 2]), "CLIPSurgery": CLIPSurgery(2)}


def pictures(number, start=0):
    return [
        Image.effect_mandelbrot((48, 48), (-2, -1.5, 1 + i / 9, 1.5), 40).convert("RGB")
        for i in range(start, start + number)
    ]


def pixel_values(model, number=2):
    return torch.stack([model.image_processor(picture) for picture in pictures(number)])


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_a_source_changes_the_patches_alone(name, tiny):
    plain, other = OpenVocabularyModel(tiny).eval(), OpenVocabularyModel(tiny, patch_source=SOURCES[name]).eval()
    before, after = (model.encode_images(pixel_values(model)) for model in (plain, other))
    assert torch.allclose(before.global_embeds, after.global_embeds, atol=1e-5)
    assert before.patch_embeds.shape == after.patch_embeds.shape
    assert (before.patch_embeds - after.patch_embeds).abs().max() > 1e-3


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_a_saved_model_keeps_its_source(name, tiny, tmp_path):
    model = OpenVocabularyModel(tiny, LABELS, head=PatchSoftmaxHead(30, ["sky"]), patch_source=SOURCES[name]).eval()
    save_model(model, tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert repr(loaded.image_encoder.patch_source) == repr(SOURCES[name])
    assert torch.allclose(loaded(pixel_values(model)), model(pixel_values(model)), atol=1e-5)
    assert Tagger(loaded, LABELS).settings() == Tagger(model, LABELS).settings()
    plain = OpenVocabularyModel(tiny, LABELS, head=PatchSoftmaxHead(30, ["sky"])).eval()
    assert Tagger(plain, LABELS).settings()["model"] != Tagger(model, LABELS).settings()["model"]


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_what_is_exported_has_source_and_background(name, tiny):
    head = PatchSoftmaxHead(30, ["sky", "grass"])
    model = OpenVocabularyModel(tiny, LABELS, head=head, patch_source=SOURCES[name]).eval()
    found = Scorer(model)(pixel_values(model), model.embed_labels())
    assert torch.allclose(found, model(pixel_values(model)), atol=1e-5)


@torch.no_grad()
def test_background_names_compete_with_the_labels(tiny):
    model = OpenVocabularyModel(tiny, LABELS, head=PatchSoftmaxHead(30, ["sky"])).eval()
    alone = OpenVocabularyModel(tiny, [*LABELS, "sky"], head=PatchSoftmaxHead(30)).eval()
    values = pixel_values(model)
    assert torch.allclose(model(values), alone(values)[:, :3], atol=1e-6)
    assert model(values).shape == (2, 3)


@pytest.mark.parametrize("name", ["SCLIP", "CLIPSurgery"])
def test_a_model_with_a_source_trains(name, config, tmp_path):
    source = ["--model.patch_source", f"ovml.encoders.sources.{name}"]
    head = ["--model.head", "PatchSoftmaxHead", "--model.head.background", "[sky]"]
    folder = ["--trainer.default_root_dir", str(tmp_path)]
    assert ovml_here("fit", "--config", config, *SMALL, *source, *head, *folder, "--trainer.max_epochs", "1") == 0
    run = tmp_path / "version_0"
    assert set(json.loads((run / "results.json").read_text())) == {"zero-shot", "vision", "prompt"}
    assert type(load_model(run).image_encoder.patch_source).__name__ == name


def test_siglip_has_no_sources():
    from transformers import SiglipConfig, SiglipModel

    tower = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 2}
    siglip = SiglipModel(SiglipConfig(vision_config={**tower, "image_size": 8, "patch_size": 4}, text_config=tower))
    with pytest.raises(UserError, match="patch_source: reads the class token of a CLIP"):
        OpenVocabularyModel(siglip, tokenizer=lambda texts: texts, patch_source=SCLIP())


def test_a_source_that_does_not_fit_the_tower_is_refused(tiny):
    with pytest.raises(UserError, match="ITACLIP: blocks must be from 1 to 3"):
        OpenVocabularyModel(tiny, patch_source=ITACLIP())


HEADS = {
    "gaussian": lambda: GaussianHead(per_label=16),
    "columns": lambda: StandardizedHead(columns=True),
    "fusion": lambda: PromptFusionHead(["a cat and a dog", "a bee"]),
}


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_a_fitted_head_is_saved_and_scores_fewer_labels(name, tiny, tmp_path):
    model = OpenVocabularyModel(tiny, LABELS, head=HEADS[name](), patch_source=SCLIP()).eval()
    assert adapt(model, [*pictures(7), b"broken"], batch_size=3, num_workers=0) == Adapted(7, 1)
    save_model(model, tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    values = pixel_values(model)
    assert torch.allclose(loaded(values), model(values), atol=1e-5)
    assert loaded(values, LABELS[1:]).shape == (2, 2)
    with pytest.raises(UserError, match="1 of 2 labels are not among those that it was fitted for"):
        loaded(values, ["owl", "cat"])


@torch.no_grad()
def test_batches_do_not_matter_to_a_fit(tiny):
    weights = []
    for size in (1, 8):
        model = OpenVocabularyModel(tiny, LABELS, head=GaussianHead(per_label=16), patch_source=SCLIP()).eval()
        adapt(model, pictures(8), batch_size=size, num_workers=0)
        weights.append(model.head.weight)
    assert torch.allclose(*weights, rtol=1e-3, atol=1e-3)


def test_heads_that_need_labels_are_not_fitted_without(tiny):
    with pytest.raises(UserError, match="head: a GlobalHead is not fitted on images without labels"):
        adapt(OpenVocabularyModel(tiny, LABELS, head=GlobalHead()), pictures(3))


@pytest.mark.parametrize("name", HEADS)
def test_an_empty_pool_ends_in_one_line(name, tiny):
    with pytest.raises(UserError, match="too few"):
        adapt(OpenVocabularyModel(tiny, LABELS, head=HEADS[name]()), [], num_workers=0)


def test_standardised_heads_take_no_background():
    with pytest.raises(UserError, match="head has background names"):
        StandardizedHead(PatchSoftmaxHead(background=["sky"]))


@pytest.mark.parametrize("number", [6, 7, 12])
@pytest.mark.parametrize("source", [SCCLIP(neighbours=8), SCLIP(), MaskCLIP(), CLIPSurgery(), PlainPatches()])
@torch.no_grad()
def test_sources_run_in_towers_of_any_depth(source, number):
    tower = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": number}
    text = {**tower, "vocab_size": 20, "num_hidden_layers": 1}
    clip = CLIPModel(CLIPConfig(vision_config={**tower, "image_size": 32, "patch_size": 8}, text_config=text))
    encoder = ImageEncoder(clip.eval(), patch_source=source)
    assert encoder(torch.randn(2, 3, 32, 32)).patch_embeds.isfinite().all()


@pytest.mark.parametrize("adapter", [VisualPrompts(num_layers=2), Ladder(num_layers=2, num_adapters=1)])
def test_a_source_does_not_go_with_other_blocks(adapter, tiny):
    with pytest.raises(UserError, match="patch_source: reads blocks as they are, which .* replaces"):
        OpenVocabularyModel(tiny, patch_source=SCLIP(), adapters=[adapter])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_a_fitted_head_scores_in_half_precision(name, dtype, tiny):
    model = OpenVocabularyModel(tiny, LABELS, head=HEADS[name]()).eval()
    adapt(model, pictures(7), num_workers=0)
    full = model(pixel_values(model))
    half = model.to(dtype)(pixel_values(model).to(dtype))
    assert half.dtype == torch.float32
    assert half.isfinite().all()
    assert half.shape == full.shape


@pytest.mark.parametrize("head", [RAMHead(), DualCoOpHead(), GaussianHead()])
def test_standardised_heads_take_heads_that_only_score(head):
    with pytest.raises(UserError, match="does not fit inside"):
        StandardizedHead(head)
