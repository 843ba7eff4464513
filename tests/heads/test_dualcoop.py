"""DualCoOp's head: the published numbers, the formula as a loop, a training through it."""

import math

import pytest
import torch
from kin_clip import kin_encoder
from PIL import Image
from test_spatial_softmax import cosine, features

from ovml import OpenVocabularyModel, OVMultiLabelClassifier, UserError, load_model
from ovml.cli.main import main
from ovml.encoders import ImageFeatures
from ovml.heads import CosineHead, DualCoOpHead
from ovml.inference.label_embeddings import read_label_embeddings
from ovml.losses import AsymmetricLoss
from ovml.prompts import DualCoOpPrompt, TemplatePrompt
from ovml.saving import save_model

DIM = 8


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def published_loss(**options):
    return AsymmetricLoss(**{"gamma_absent": 2, "gamma_present": 1, "eps": 1e-6, "reduction": "sum", **options})


@pytest.fixture(scope="module")
def published(kin_golden, kin_golden_json):
    """The published prompt and regions, which learn here."""
    prompt = DualCoOpPrompt(len(kin_golden["dualcoop.context_present"])).bind(kin_encoder(kin_golden))
    prompt.present_context.data.copy_(kin_golden["dualcoop.context_present"])
    prompt.absent_context.data.copy_(kin_golden["dualcoop.context_absent"])
    regions = kin_golden["dualcoop.regions"].clone().requires_grad_()
    return prompt, regions, tuple(kin_golden_json["dualcoop"]["names"])


@pytest.mark.parametrize("global_region", [False, True])
def test_logits_and_scores_are_the_published_ones(kin_golden, published, global_region):
    prompt, regions, names = published
    first = int(global_region)
    image = ImageFeatures(regions[:, 0], regions[:, first:])
    head = DualCoOpHead(global_region=global_region)
    with torch.no_grad():
        pairs = prompt(names)
        close(head.pair_logits(image, pairs), kin_golden["dualcoop.logits"])
        close(head(image, pairs).sigmoid(), kin_golden["dualcoop.score"])
        labels = torch.nn.functional.normalize(pairs[:, 1], dim=-1)
        cosines = labels @ torch.nn.functional.normalize(regions, dim=-1).transpose(1, 2)
        close(head.region_weights(cosines), kin_golden["dualcoop.region_weights"])


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("published", {}),
        ("gammas_4_0", {"gamma_absent": 4, "gamma_present": 0}),
        ("published_not_detached", {"detach_focus": False}),
    ],
)
def test_loss_and_gradient_are_the_published_ones(kin_golden, kin_golden_json, case, options):
    """The published loss takes both logits; ovml's the difference, which is all that it depends on."""
    logits = kin_golden["dualcoop.logits"].clone().requires_grad_()
    loss = published_loss(**options)(logits[:, 1] - logits[:, 0], kin_golden["dualcoop.targets"])
    loss.backward()
    assert loss.item() == pytest.approx(kin_golden_json["dualcoop"]["losses"][case], rel=1e-4)
    close(logits.grad, kin_golden[f"dualcoop.{case}.grad_logits"])


def test_gradients_reach_contexts_and_regions_as_published(kin_golden, published):
    prompt, regions, names = published
    image = ImageFeatures(regions[:, 0], regions[:, 1:])
    published_loss()(DualCoOpHead()(image, prompt(names)), kin_golden["dualcoop.targets"]).backward()
    close(prompt.present_context.grad, kin_golden["dualcoop.published.grad_context_present"])
    close(prompt.absent_context.grad, kin_golden["dualcoop.published.grad_context_absent"])
    close(regions.grad, kin_golden["dualcoop.published.grad_regions"])


def naive(regions, absent, present, temperature, scale):
    cosines = [cosine(region, present) for region in regions]
    exponentials = [math.exp(c / temperature) for c in cosines]
    weights = [e / sum(exponentials) for e in exponentials]
    other = [cosine(region, absent) for region in regions]
    return scale * sum(w * (c - o) for w, c, o in zip(weights, cosines, other, strict=True))


@pytest.mark.parametrize("global_region", [False, True])
@pytest.mark.parametrize(("temperature", "scale"), [(0.05, 100.0), (0.4, 3.0)])
def test_it_is_the_formula_as_a_loop(global_region, temperature, scale):
    image, pairs = features(dtype=torch.float64), torch.randn(4, 2, DIM, dtype=torch.float64)
    found = DualCoOpHead(temperature, scale, global_region)(image, pairs)
    expected = []
    for whole, patches in zip(image.global_embeds.tolist(), image.patch_embeds.tolist(), strict=True):
        regions = [whole, *patches] if global_region else patches
        expected.append([naive(regions, *pair, temperature, scale) for pair in pairs.tolist()])
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("budget", [1, 70])
def test_labels_in_chunks_give_the_same(budget, monkeypatch):
    image, pairs = features(), torch.randn(37, 2, DIM)
    expected = DualCoOpHead()(image, pairs)
    monkeypatch.setattr("ovml.heads.chunks.CPU_BUDGET", budget)
    torch.testing.assert_close(DualCoOpHead()(image, pairs), expected, atol=1e-4, rtol=1e-5)


def test_no_image_and_zero_features():
    assert DualCoOpHead()(features(batch=0), torch.randn(3, 2, DIM)).shape == (0, 3)
    image = ImageFeatures(torch.zeros(1, DIM), torch.zeros(1, 3, DIM, requires_grad=True))
    scores = DualCoOpHead()(image, torch.randn(4, 2, DIM))
    scores.sum().backward()
    assert torch.equal(scores, torch.zeros(1, 4))
    assert image.patch_embeds.grad.isfinite().all()


def test_a_model_of_both_is_saved_and_scores_the_same(tiny, tmp_path):
    model = OVMultiLabelClassifier(tiny, ["cat", "dog"], head=DualCoOpHead(), prompt=DualCoOpPrompt(4)).eval().model
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(model(pixels, ["a", "b c", "d"]), again(pixels, ["a", "b c", "d"]))


@pytest.mark.parametrize(
    ("head", "prompt", "message"),
    [
        (DualCoOpHead(), TemplatePrompt(), "DualCoOpHead takes pairs of label embeddings, TemplatePrompt gives single"),
        (CosineHead(), DualCoOpPrompt(4), "CosineHead takes single label embeddings, DualCoOpPrompt gives pairs"),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_the_model_is_made(tiny, head, prompt, message):
    with pytest.raises(UserError, match=message):
        OVMultiLabelClassifier(tiny, ["cat", "dog"], head=head, prompt=prompt)


def test_another_prompt_must_fit_too(tiny):
    model = OVMultiLabelClassifier(tiny, ["cat", "dog"], head=DualCoOpHead(), prompt=DualCoOpPrompt(4)).model
    with pytest.raises(UserError, match="DualCoOpHead takes pairs"):
        model.embed_labels(prompt=TemplatePrompt().bind(model.prompt.text_encoder))


def test_the_commands_take_a_model_of_pairs(tmp_path, capsys):
    model = OpenVocabularyModel("ovml-demo", ["red circle", "blue star"], DualCoOpHead(), DualCoOpPrompt(4))
    save_model(model, tmp_path / "model")
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    (tmp_path / "names.txt").write_text("moon\nfish\n")
    model_of = ["--model", str(tmp_path / "model")]
    embeds = str(tmp_path / "labels.safetensors")
    assert main(["embed-labels", "--labels-file", str(tmp_path / "names.txt"), *model_of, "--out", embeds]) == 0
    assert read_label_embeddings(embeds).embeds.shape == (2, 2, model.embed_dim)
    assert main(["tag", str(tmp_path / "red.png"), *model_of]) == 0
    assert "red circle" in capsys.readouterr().out
    assert main(["explain", str(tmp_path / "red.png"), *model_of, "--out", str(tmp_path / "why.png")]) == 0
    assert main(["tag", str(tmp_path / "red.png"), *model_of, "--prompt", "a photo of a {}"]) == 2
    assert "DualCoOpHead takes pairs of label embeddings, TemplatePrompt gives single ones" in capsys.readouterr().err


def test_single_embeddings_are_refused():
    with pytest.raises(UserError, match=r"needs pairs of label embeddings \[L, 2, D\]"):
        DualCoOpHead()(features(), torch.randn(5, DIM))
