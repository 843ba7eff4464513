"""Several texts of each label, of which the best counts, in whole models."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ovml import OpenVocabularyModel, OVMultiLabelClassifier, Tagger, UserError, load_model
from ovml.encoders.sources import SCLIP
from ovml.heads import CosineHead, GaussianHead, PatchSoftmaxHead, StandardizedHead
from ovml.inference.adapt import adapt
from ovml.inference.explain import explain
from ovml.inference.export import export_model
from ovml.inference.second_pass import SecondPass
from ovml.prompts import EnsemblePrompt
from ovml.prompts.several import distinct_texts, stack_texts
from ovml.saving import save_model
from ovml.training import VisionStage
from ovml.training.learning import check_learns

LABELS = ["cat", "dog", "bee"]
SYNONYMS = {"cat": ["kitten", "tomcat"], "bee": ["wasp"]}
TEXTS = ["cat", "kitten", "tomcat", "dog", "bee", "wasp"]
OF_LABEL = [slice(0, 3), slice(3, 4), slice(4, 6)]


def prompt(pool="max", **options):
    return EnsemblePrompt(["a {}", "the {}."], synonyms=SYNONYMS, pool=pool, **options)


def pixel_values(model):
    side = model.image_encoder.image_size
    return torch.randn(4, 3, side, side, generator=torch.manual_seed(0))


HEADS = {
    "cosine": CosineHead,
    "standardised": StandardizedHead,
    "patches": lambda: PatchSoftmaxHead(30),
    "background": lambda: PatchSoftmaxHead(30, ["sky", "kitty"]),
}


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_a_label_scores_as_its_best_text(name, tiny, tmp_path):
    head = HEADS[name]
    model = OpenVocabularyModel(tiny, LABELS, head=head(), prompt=prompt()).eval()
    values = pixel_values(model)
    plain = EnsemblePrompt(["a {}", "the {}."])
    texts = OpenVocabularyModel(tiny, TEXTS, head=head(), prompt=plain).eval()(values)
    expected = torch.stack([texts[:, own].amax(dim=1) for own in OF_LABEL], dim=1)
    assert torch.allclose(model(values), expected, atol=1e-6)
    save_model(model, tmp_path / "saved")
    assert torch.allclose(load_model(tmp_path / "saved")(values), expected, atol=1e-6)


@torch.no_grad()
def test_descriptions_are_texts_of_their_own(tiny):
    described = EnsemblePrompt(["a {}"], {"cat": ["paws", "whiskers"]}, "{name} with {description}", pool="max")
    model = OpenVocabularyModel(tiny, LABELS, head=CosineHead(), prompt=described).eval()
    embeds = model.embed_labels()
    assert embeds.shape[:2] == (3, 2)
    encoder = model.prompt.text_encoder
    sentences = encoder(["cat with paws", "cat with whiskers", "a dog", "a bee"])
    assert torch.allclose(distinct_texts(embeds)[0], F.normalize(sentences, dim=-1), atol=1e-6)


@torch.no_grad()
def test_tagging_explaining_and_a_second_pass_take_several_texts(tiny):
    model = OpenVocabularyModel(tiny, LABELS, head=CosineHead(), prompt=prompt(), patch_source=SCLIP()).eval()
    picture = Image.effect_mandelbrot((48, 48), (-2, -1.5, 1, 1.5), 40).convert("RGB")
    (tags,) = Tagger(model, num_workers=0).predict([picture])
    assert {label for label, _ in tags} == set(LABELS)
    assert explain(model, picture).mode == "RGB"
    values, second = pixel_values(model), SecondPass(model, background=())
    texts = OpenVocabularyModel(tiny, TEXTS, prompt=EnsemblePrompt(["a {}", "the {}."]), patch_source=SCLIP()).eval()
    of_texts = SecondPass(texts, background=())(values)
    expected = torch.stack([of_texts[:, own].amax(dim=1) for own in OF_LABEL], dim=1)
    assert torch.allclose(second(values), expected, atol=1e-5)


def test_texts_that_are_stacked_are_found_again():
    embeds, counts = torch.randn(9, 4, generator=torch.manual_seed(0)), [1, 4, 2, 2]
    stacked = stack_texts(embeds, counts)
    assert stacked.shape == (4, 4, 4)
    found, places = distinct_texts(stacked)
    assert found.equal(embeds)
    assert places.tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 5, 5], [7, 8, 7, 7]]


def test_what_needs_one_text_of_a_label_says_so(tiny, tmp_path):
    with pytest.raises(UserError, match="GaussianHead: is fitted for one text of each label; .* pool='mean'"):
        adapt(OpenVocabularyModel(tiny, LABELS, head=GaussianHead(), prompt=prompt()), [], num_workers=0)
    model = OpenVocabularyModel(tiny, LABELS, head=CosineHead(), prompt=prompt()).eval()
    with pytest.raises(UserError, match="several texts of a label cannot be exported; take pool='mean'"):
        export_model(model, tmp_path / "model.pt2")
    classifier = OVMultiLabelClassifier(tiny, LABELS, prompt=prompt(), stages=[VisionStage()])
    with pytest.raises(UserError, match="EnsemblePrompt with pool='max' only scores; train with pool='mean'"):
        check_learns(VisionStage(), classifier.learning_parts)
