"""Prompts that are learned from captions alone."""

import random

import pytest
import torch
from sklearn.metrics import label_ranking_average_precision_score
from torch.nn import functional as F

from ovml import OpenVocabularyModel, UserError, load_model
from ovml.data.synthetic.scenes import LABELS
from ovml.encoders import ImageFeatures
from ovml.heads import DualCoOpHead, SpatialSoftmaxHead
from ovml.metrics.adapted import Adapted
from ovml.prompts import ContextPrompt, CoOpPrompt, DualCoOpPrompt, EnsemblePrompt, TemplatePrompt
from ovml.saving import save_model
from ovml.training import CoOpStage
from ovml.training.captions import caption_features, caption_scores, caption_targets, learn_from_captions
from ovml.training.stages import PromptStage
from ovml.vocabulary import LabelVocabulary

NAMES = LABELS[:12]


def made_captions(number, seed):
    """Sentences that name one to three labels."""
    draw = random.Random(seed)
    forms = ["a {}", "there is a {} here", "a {} and a {}", "a {} next to a {}", "a {}, a {} and a {}"]
    found = []
    for _ in range(number):
        form = draw.choice(forms)
        found.append(form.format(*draw.sample(NAMES, form.count("{}"))))
    return found


def ranked(model, captions, grain):
    """How well the captions' own labels rank among all."""
    features = caption_features(model.prompt.text_encoder, captions, grain)
    with torch.no_grad():
        scores = caption_scores(features, model.embed_labels())
    return label_ranking_average_precision_score(caption_targets(captions, model.vocabulary).numpy(), scores.numpy())


@pytest.mark.parametrize("grain", ["captions", "words"])
def test_a_prompt_learns_from_made_captions(grain, tmp_path):
    torch.manual_seed(0)
    model = OpenVocabularyModel("ovml-demo", list(NAMES), prompt=CoOpPrompt(16, None))
    others = made_captions(60, seed=1)
    before = ranked(model, others, grain)
    model.adapted = Adapted(2, 0, "photos", None)
    frozen = {name: value.clone() for name, value in model.state_dict().items() if name != "prompt.context"}
    learned = learn_from_captions(model, made_captions(64, 0), grain=grain, stage=PromptStage(epochs=12, batch_size=16))
    assert learned.captions == 64
    assert (model.calibration, model.adapted) == (None, None)
    assert learned.losses[-1] < learned.losses[0] / 2
    assert ranked(model, others, grain) > before + 0.3
    assert all(value.equal(model.state_dict()[name]) for name, value in frozen.items())
    save_model(model, tmp_path / "saved")
    assert load_model(tmp_path / "saved").embed_labels().allclose(model.embed_labels(), atol=1e-5)


@pytest.mark.parametrize(
    "stage", [CoOpStage(epochs=3, lr=0.1, warmup_epochs=0, batch_size=16), PromptStage(epochs=3, batch_size=16)]
)
def test_the_stage_s_optimizer_learns_and_a_seed_repeats_it(stage):
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        model = OpenVocabularyModel("ovml-demo", list(NAMES), prompt=CoOpPrompt(16, None))
        learned = learn_from_captions(model, made_captions(32, 0), stage=stage, seed=5)
        assert learned.losses[-1] < learned.losses[0]
        found.append(learned)
    assert found[0] == found[1]


def test_labels_of_captions():
    vocabulary = LabelVocabulary(("dog", "hot dog", "person", "red car"))
    captions = ["Two people eat hot dogs.", "a red-car", "puppies and a dog", "nothing", "an automobile", "Dogs!"]
    synonyms = {"Dog": ["puppy", "puppies"], "red car": ["automobile"], "unknown": ["x"]}
    expected = [[0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert caption_targets(captions, vocabulary, synonyms).tolist() == expected


@torch.no_grad()
def test_features_are_those_of_the_text_tower():
    model = OpenVocabularyModel("ovml-demo", list(NAMES), prompt=TemplatePrompt("{}"))
    encoder, captions = model.prompt.text_encoder, ["a red circle", "a moon", "a star next to a flower"]
    whole = caption_features(encoder, captions)
    words = caption_features(encoder, captions, "words")
    expected = F.normalize(encoder(captions), dim=-1)
    assert torch.allclose(whole[:, 0], expected, atol=1e-6)
    for caption, own, last in zip(captions, words, expected, strict=True):
        length = len(encoder.tokenize([caption])[0][0])
        assert torch.allclose(own[length - 1], last, atol=1e-5)  # the end token's embedding is the caption's
        assert (own[length:] == 0).all()
        assert torch.allclose(own[:length].norm(dim=-1), torch.ones(length), atol=1e-5)


@torch.no_grad()
def test_words_are_weighed_as_patches_are():
    features = F.normalize(torch.randn(3, 5, 8, generator=torch.manual_seed(0)), dim=-1)
    labels = torch.randn(4, 8, generator=torch.manual_seed(1))
    head = SpatialSoftmaxHead(temperature=1 / 50, scale=4)
    expected = head(ImageFeatures(features[:, 0], features), labels)
    assert torch.allclose(caption_scores(features, labels), expected, atol=1e-5)
    padded = torch.cat([features, torch.zeros(3, 2, 8)], dim=1)
    assert torch.allclose(caption_scores(padded, labels), expected, atol=1e-5)


def test_long_captions_are_cut():
    model = OpenVocabularyModel("ovml-demo", list(NAMES), prompt=CoOpPrompt(4))
    encoder = model.prompt.text_encoder
    long = "a moon " + "and a red circle " * 50
    for grain in ("captions", "words"):
        assert caption_features(encoder, [long, "a moon"], grain).isfinite().all()


@pytest.mark.parametrize(
    ("prompt", "captions", "message"),
    [
        (EnsemblePrompt(), ["a moon"], "EnsemblePrompt has nothing to learn; take CoOpPrompt or ContextPrompt"),
        (ContextPrompt(), ["a cat", "a dog"], "none of 2 names a label; check both, or give synonyms"),
        (ContextPrompt(), [], "none of 0 names a label"),
        (ContextPrompt(), "a moon", r"expected several captions, got one; write \[caption\]"),
    ],
)
def test_what_cannot_teach_is_refused(prompt, captions, message):
    with pytest.raises(UserError, match=message):
        learn_from_captions(OpenVocabularyModel("ovml-demo", list(NAMES), prompt=prompt), captions)


def test_prompts_of_pairs_are_refused():
    model = OpenVocabularyModel("ovml-demo", list(NAMES), prompt=DualCoOpPrompt(4), head=DualCoOpHead())
    with pytest.raises(UserError, match="DualCoOpPrompt gives pairs of embeddings; take CoOpPrompt"):
        learn_from_captions(model, ["a moon"])


def test_labels_that_no_caption_names_are_told():
    model = OpenVocabularyModel("ovml-demo", ["moon", "star", "cat"], prompt=CoOpPrompt(4))
    learned = learn_from_captions(model, ["a moon", "two stars", "nothing"], stage=PromptStage(epochs=1))
    assert (learned.captions, learned.others, learned.unnamed) == (2, 1, ("cat",))
