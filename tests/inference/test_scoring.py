"""Scorings of a plain CLIP by name: what they are, what they cannot change, thresholds that need no labels."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from my_parts import MaxPatchHead
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipModel

from ovml import OpenVocabularyModel, Tagger, UserError, load_model
from ovml.cli.command import FITTED
from ovml.cli.command import SCORINGS as NAMES
from ovml.data.synthetic.scenes import draw_scene
from ovml.encoders import ImageFeatures, make_encoders
from ovml.encoders.sources import SCLIP, CLIPSurgery, MaskCLIP
from ovml.heads import CosineHead, GaussianHead, PatchSoftmaxHead, StandardizedHead, SurgeryHead, TwoStreamHead
from ovml.heads.pool import fitted_part
from ovml.heads.scoring import SCORINGS, Scoring, patches, scoring_of, sparc
from ovml.inference.adapt import Sample, adapt
from ovml.inference.compound_prompts import compound_prompts
from ovml.inference.explain import explain
from ovml.inference.export import export_model
from ovml.inference.second_pass import SecondPass
from ovml.metrics.adapted import ScoreThreshold
from ovml.metrics.calibration import Calibration
from ovml.saving import save_model
from ovml.vocabulary import LabelVocabulary

LABELS = ["cat", "dog", "bee", "owl", "fish"]
UNFITTED = [name for name in SCORINGS if name not in FITTED]


def pictures(number, start=0):
    return [
        Image.effect_mandelbrot((48, 48), (-2, -1.5, 1 + i / 9, 1.5), 40).convert("RGB")
        for i in range(start, start + number)
    ]


def scores(model, labels=None, images=3):
    return Tagger(model, labels, num_workers=0).score(pictures(images, 20))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------- names


def test_the_command_line_knows_the_names_without_torch():
    assert tuple(SCORINGS) == NAMES
    assert [name for name, make in SCORINGS.items() if fitted_part(make().head) is not None] == list(FITTED)


def test_a_plain_clip_scores_by_cosine(tiny):
    model = load_model(tiny, labels=LABELS)
    expected = OpenVocabularyModel(tiny, LABELS, head=CosineHead()).eval()
    assert torch.equal(scores(model), scores(expected))
    assert scores(model).abs().max() <= 1


def test_a_model_keeps_the_head_that_it_was_saved_with(tiny, tmp_path):
    save_model(OpenVocabularyModel(tiny, LABELS).eval(), tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert type(loaded.head) is TwoStreamHead
    assert loaded.scoring is None
    with pytest.raises(UserError) as info:
        load_model(tmp_path / "saved", scoring="cosine")
    assert "keeps the head that it was saved with" in one_line(info)


PARTS = {
    "cosine": (CosineHead, None),
    "standardized": (StandardizedHead, None),
    "surgery": (SurgeryHead, CLIPSurgery),
    "patches": (lambda: PatchSoftmaxHead(None), MaskCLIP),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_name_is_a_head_and_a_source(name, tiny):
    head, source = PARTS[name]
    expected = OpenVocabularyModel(tiny, LABELS, head=head(), patch_source=source and source()).eval()
    model = load_model(tiny, labels=LABELS, scoring=name)
    assert torch.equal(scores(model), scores(expected))
    assert explain(model, pictures(1)[0], top_k=2).size == explain(expected, pictures(1)[0], top_k=2).size


def test_tagclip_is_the_second_pass_and_is_neither_saved_nor_exported(tmp_path):
    drawn, labels = [draw_scene(0, "test", i).image for i in range(3)], ["heart", "moon", "yellow circle", "red bolt"]
    model, plain, coarse = (load_model("ovml-demo", s, labels=labels) for s in ("tagclip", "cosine", "patches"))
    second = SecondPass(plain)
    found = Tagger(model, num_workers=0).score(drawn)
    torch.testing.assert_close(found, second(torch.stack(list(map(model.image_processor, drawn)))))
    assert second.regions
    assert Tagger(model).settings() != Tagger(coarse).settings()
    with pytest.raises(UserError, match="second look") as info:
        adapt(model, drawn, expected=1)
    one_line(info)
    for keep, name in ((save_model, "saved"), (export_model, "model.pt2")):
        with pytest.raises(UserError, match="second look") as info:
            keep(model, tmp_path / name)
        one_line(info)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FITTED)
def test_what_is_fitted_says_so_before_it_scores(name, tiny):
    model = load_model(tiny, labels=LABELS, scoring=name)
    with pytest.raises(UserError, match="not fitted yet; run 'ovml adapt' on a folder of images without labels first"):
        scores(model)


def test_patches_compete_at_the_scale_that_the_clip_learned(tiny, tmp_path):
    model = load_model(tiny, labels=LABELS, scoring="patches")
    scale = float(model.logit_scale.exp())
    given = OpenVocabularyModel(tiny, LABELS, head=PatchSoftmaxHead(scale), patch_source=MaskCLIP()).eval()
    assert torch.equal(scores(model), scores(given))
    save_model(model, tmp_path / "saved")
    assert torch.equal(scores(load_model(tmp_path / "saved")), scores(given))


def test_a_head_of_ones_own_is_named_by_its_path(tiny):
    model = load_model(tiny, labels=LABELS, scoring="my_parts.MaxPatchHead")
    assert torch.equal(scores(model), scores(OpenVocabularyModel(tiny, LABELS, head=MaxPatchHead()).eval()))


def test_a_scoring_may_be_made_in_python(tiny):
    made = Scoring(PatchSoftmaxHead(30, ["sky"]), "one pass", SCLIP())
    expected = OpenVocabularyModel(tiny, LABELS, head=PatchSoftmaxHead(30, ["sky"]), patch_source=SCLIP()).eval()
    models = [load_model(tiny, labels=LABELS, scoring=made) for _ in range(2)]
    assert torch.equal(scores(models[0]), scores(expected))
    assert models[0].head is not models[1].head


@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        ("cosin", "scoring 'cosin': unknown; it is one of cosine, standardized,"),
        ("no_such.Head", "scoring: no class 'no_such.Head' here"),
        (
            "ovml.prompts.TemplatePrompt",
            "scoring: 'ovml.prompts.TemplatePrompt' cannot be made; give a subclass of Head",
        ),
    ],
)
def test_other_names_end_in_one_line(scoring, message):
    with pytest.raises(UserError) as info:
        scoring_of(scoring)
    assert message in one_line(info)


def test_a_scoring_and_a_head_are_too_much(tiny):
    with pytest.raises(UserError, match="scoring: has a head and a patch source; leave out head"):
        load_model(tiny, scoring="patches", head=CosineHead())
    assert type(load_model(tiny, patch_source=SCLIP()).head) is CosineHead


def test_another_scoring_leaves_the_model_as_it_is(tiny):
    model = load_model(tiny, labels=LABELS)
    before = scores(model)
    other = model.scored_by(patches()).eval()
    assert torch.equal(scores(model), before)
    assert not torch.equal(scores(other), before)
    assert other.image_encoder.vision_model is model.image_encoder.vision_model
    assert model.image_encoder.patch_source is None


@pytest.mark.parametrize("name", ["surgery", "patches", "standardized"])
def test_a_single_label_ends_in_one_line_where_labels_compete(name, tiny):
    with pytest.raises(UserError) as info:
        scores(load_model(tiny, labels=["cat"], scoring=name))
    assert "labels: " in one_line(info)
    assert "give two or more" in one_line(info)


def test_a_background_name_is_no_label(tiny):
    model = load_model(tiny, labels=[*LABELS, "Sky"], scoring=patches(["grass", "sky"]))
    with pytest.raises(UserError) as info:
        scores(model)
    assert "labels: 'Sky' is a background name of the head too; leave out one of both" in one_line(info)


@pytest.mark.parametrize("name", SCORINGS)
@torch.no_grad()
def test_siglip_has_patches_of_its_own(name):
    tower = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 2}
    clip = SiglipModel(SiglipConfig(vision_config={**tower, "image_size": 8, "patch_size": 4}, text_config=tower))
    encoder = make_encoders(clip.eval(), type("Tokenizer", (), {"pad_token_id": 0, "padding_side": "right"})())[0]
    features = encoder(torch.randn(6, 3, 8, 8))
    labels, head = torch.randn(3, 8), SCORINGS[name]().head
    if (part := fitted_part(head)) is not None:
        part.begin(LabelVocabulary(("cat", "dog", "bee")), labels, lambda texts: torch.randn(len(texts), 8))
        part.observe(features)
        part.finish()
    assert head(features, labels).isfinite().all()


# ---------------------------------------------------------------------- what a step cannot change


def drawn(seed, images=8):
    numbers = torch.manual_seed(seed)
    embeds = [torch.randn(size, generator=numbers) for size in ((images, 8), (images, 9, 8), (6, 8))]
    return ImageFeatures(*embeds[:2]), embeds[2]


@given(st.integers(0, 2**16))
def test_names_that_compare_labels_keep_the_order_within_an_image(seed):
    features, labels = drawn(seed)
    cosines = CosineHead()(features, labels)
    steady = (cosines > -0.5).all(dim=1)  # feature surgery keeps the order of such cosines
    order = cosines.argsort(dim=1, stable=True)
    assert SCORINGS["standardized"]().head(features, labels).argsort(dim=1, stable=True).equal(order)
    assert SCORINGS["surgery"]().head(features, labels).argsort(dim=1, stable=True)[steady].equal(order[steady])


@given(st.integers(0, 2**16))
def test_columns_keep_the_order_within_a_label(seed):
    features, labels = drawn(seed)
    head = sparc().head
    head.begin(LabelVocabulary(tuple("abcdef")), labels, lambda texts: torch.randn(len(texts), 8))
    head.observe(features)
    head.finish()
    others, _ = drawn(seed + 1)
    rows = SCORINGS["standardized"]().head(others, labels)
    assert head(others, labels).argsort(dim=0).equal(rows.argsort(dim=0))


@given(st.integers(0, 2**16), st.floats(0.1, 6))
def test_a_threshold_leaves_the_expected_number_whatever_the_scale(seed, expected):
    values = torch.randn(40, 6, generator=torch.manual_seed(seed))
    vocabulary = LabelVocabulary(tuple("abcdef"))
    found = ScoreThreshold.of(values, expected, vocabulary)
    given_out = values.double() >= found.score
    assert int(given_out.sum()) == min(max(1, round(40 * expected)), 240)
    monotone = (values.double() * 3 - 1).exp()
    assert (monotone >= ScoreThreshold.of(monotone, expected, vocabulary).score).equal(given_out)


@given(st.lists(st.integers(1, 7), max_size=8), st.integers(1, 9))
def test_a_sample_is_drawn_from_all(sizes, most):
    sample, count = Sample(most), 0
    for size in sizes:
        numbers = torch.arange(count, count + size, dtype=torch.float32)
        sample.add(ImageFeatures(numbers[:, None], numbers[:, None, None]))
        count += size
    kept = [int(whole) for whole, _ in sample.kept]
    assert (sample.seen, len(set(kept))) == (count, min(count, most))
    assert all(int(whole) == int(part) < count for whole, part in sample.kept)


def test_each_image_has_the_same_chance_of_being_in_a_sample():
    counts = torch.zeros(10)
    for draw in range(400):
        sample = Sample(3)
        sample._draw.seed(draw)
        sample.add(ImageFeatures(torch.arange(10.0)[:, None], torch.zeros(10, 1, 1)))
        counts[[int(whole) for whole, _ in sample.kept]] += 1
    assert (counts - 120).abs().max() < 4 * (400 * 0.3 * 0.7) ** 0.5  # four deviations of a binomial


# ---------------------------------------------------------------------- fitted on images without labels


@pytest.fixture(scope="module", params=[name for name in SCORINGS if name != "tagclip"])
def adapted(request, tiny):
    """A model that is fitted on twelve images, of which one cannot be read."""
    model = load_model(tiny, labels=LABELS, scoring=request.param)
    adapt(model, [*pictures(12), b"broken"], batch_size=5, num_workers=0, expected=1.5, pool="photos")
    return model


def test_what_is_fitted_is_saved_to_the_last_bit(adapted, tmp_path):
    save_model(adapted, tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert torch.equal(scores(loaded), scores(adapted))
    assert loaded.adapted == adapted.adapted
    assert (loaded.adapted.images, loaded.adapted.unreadable, loaded.adapted.pool) == (12, 1, "photos")
    of_both = [Tagger(model, threshold="auto", num_workers=0).settings() for model in (loaded, adapted)]
    assert of_both[0] == of_both[1]
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "| fitted on | 12 images of photos, without labels; 1 could not be read" in card
    assert "for 1.5 labels an image (`--threshold auto`) |" in card
    save_model(loaded, tmp_path / "again")
    assert load_model(tmp_path / "again").adapted == adapted.adapted


def test_auto_leaves_the_expected_number_of_labels(adapted):
    every = Tagger(adapted, top_k=None, num_workers=0)
    auto = Tagger(adapted, top_k=None, num_workers=0, threshold="auto")
    given_out = [tags for _, tags in auto.tag(pictures(12))]
    assert sum(map(len, given_out)) == pytest.approx(18, abs=1)  # the sample's patches are in half precision
    for tags, (_, all_tags) in zip(given_out, every.tag(pictures(12)), strict=True):
        assert tags == all_tags[: len(tags)]


def test_auto_scores_a_part_of_the_labels_as_all_of_them(adapted):
    whole = Tagger(adapted, top_k=None, num_workers=0, threshold="auto").predict(pictures(4))
    part = Tagger(adapted, LABELS[1:3], top_k=None, num_workers=0, threshold="auto").predict(pictures(4))
    for all_tags, tags in zip(whole, part, strict=True):
        assert [tag.label for tag in tags] == [tag.label for tag in all_tags if tag.label in LABELS[1:3]]


def test_another_threshold_makes_another_job(tiny):
    settings = []
    for expected in (1.0, 2.0):
        model = load_model(tiny, labels=LABELS)
        adapt(model, pictures(6), num_workers=0, expected=expected)
        settings.append(Tagger(model, threshold="auto").settings())
    assert settings[0] != settings[1]


def test_auto_is_the_calibrated_threshold_of_a_validated_model(tiny):
    model = OpenVocabularyModel(tiny, LABELS).eval()
    with pytest.raises(UserError) as info:
        Tagger(model, threshold="auto")
    assert "auto needs a threshold of the model's own; run 'ovml adapt'" in one_line(info)
    model.calibration = Calibration(2.0, 0.0, 0.4, LabelVocabulary(tuple(LABELS)))
    tags = [Tagger(model, threshold=name, num_workers=0).predict(pictures(1)) for name in ("auto", "calibrated")]
    assert tags[0] == tags[1]


def test_a_trained_model_takes_a_threshold_and_keeps_its_calibration(tiny):
    model = OpenVocabularyModel(tiny, LABELS).eval()
    model.calibration = Calibration(2.0, 0.0, 0.4, LabelVocabulary(tuple(LABELS)))
    adapt(model, pictures(5), num_workers=0, expected=2)
    assert model.calibration is not None
    tags = Tagger(model, num_workers=0, threshold="auto").predict(pictures(5))
    assert sum(map(len, tags)) == pytest.approx(10, abs=1)
    probabilities = Tagger(model, num_workers=0, threshold="auto", probabilities=True)
    assert probabilities.predict(pictures(1)) == Tagger(model, threshold="calibrated").predict(pictures(1))
    model.head = GaussianHead(per_label=8)
    adapt(model, pictures(5), num_workers=0)
    assert model.calibration is None


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "images: 0 are too few to fit on"),
        (pictures(1), {}, "images: 1 is too few to fit on"),
        ([*pictures(1), b"broken"], {}, "images: 1 is too few to fit on, 1 could not be read"),
        (pictures(1) * 5, {}, "images: all 5 are alike to the model"),
        (pictures(3), {"expected": 6}, "expected must be above 0 and at most 5, the number of labels; got 6"),
        (pictures(3), {"expected": 0}, "expected must be above 0"),
        (pictures(3), {"labels": ["cat"]}, "give two or more"),
    ],
)
@pytest.mark.parametrize("scoring", FITTED)
def test_a_bad_pool_ends_in_one_line(images, options, message, scoring, tiny):
    model = load_model(tiny, labels=LABELS, scoring=scoring)
    with pytest.raises(UserError) as info:
        adapt(model, images, num_workers=0, **options)
    assert message in one_line(info)
    assert model.adapted is None


def test_labels_that_no_patch_shows_are_told():
    head, labels = GaussianHead(per_label=50), torch.eye(8)[:3]
    head.begin(LabelVocabulary(("cat", "dog", "bee")), labels, lambda texts: torch.randn(len(texts), 8))
    patches = torch.cat([torch.eye(8)[:2] + 0.1 * torch.randn(2, 8) for _ in range(40)])
    head.observe(ImageFeatures(torch.randn(8, 8), patches.view(8, 10, 8)))
    head.finish()
    assert head.not_found == [2]
    assert head(ImageFeatures(torch.randn(8, 8), patches.view(8, 10, 8)), labels).isfinite().all()


@pytest.mark.parametrize(
    ("path", "value"),
    [("images", -1), ("images", "many"), ("threshold", 5), ("pool", 3), ("more", 1), ("unreadable", None)],
)
def test_a_damaged_record_ends_in_one_line(path, value, tiny, tmp_path):
    model = load_model(tiny, labels=LABELS)
    adapt(model, pictures(3), num_workers=0, expected=1)
    save_model(model, tmp_path / "saved")
    file = tmp_path / "saved" / "adapted.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), path: value}))
    with pytest.raises(UserError) as info:
        load_model(tmp_path / "saved")
    assert "adapted.json: not what ovml adapt wrote" in one_line(info)


# ---------------------------------------------------------------------- compound prompts


def test_compound_prompts_are_labels_that_captions_name_together():
    captions = ["A dog chases two cats", "cat and dog with a hot dog", "a bird", "birds and a cat, a dog"] * 2
    found = compound_prompts(captions, ["dog", "cat", "bird", "hot dog", "fish"])
    assert found[:3] == ["dog and cat", "dog and bird", "dog and hot dog"]
    assert "dog, cat, and bird" in found
    assert not any("fish" in prompt for prompt in found)
    assert compound_prompts(["a dog and a cat"], ["dog", "cat"]) == []  # in one caption alone


# ---------------------------------------------------------------------- export


@pytest.mark.parametrize("name", ["standardized", "surgery", "patches"])
def test_a_scored_model_is_exported(name, tiny, tmp_path):
    exported = export_model(load_model(tiny, labels=LABELS, scoring=name), tmp_path / "model.pt2")
    assert exported.difference < 1e-4


def test_what_scores_its_own_labels_alone_is_not_exported(tiny, tmp_path):
    model = load_model(tiny, labels=LABELS, scoring="piaa")
    with pytest.raises(UserError) as info:
        export_model(model, tmp_path / "model.pt2")
    assert "a GaussianHead scores the labels that it was fitted for" in one_line(info)
    assert not any(tmp_path.iterdir())


def test_some_of_the_fitted_labels_have_the_scores_that_they_have_among_all(tiny):
    model = load_model(tiny, labels=LABELS, scoring="sparc")
    adapt(model, pictures(12), num_workers=0)
    torch.testing.assert_close(scores(model, LABELS[1:3]), scores(model)[:, 1:3])


def test_embeddings_in_half_precision_are_of_the_labels_that_were_fitted(tiny, tmp_path):
    model = load_model(tiny, labels=LABELS, scoring="piaa")
    adapt(model, pictures(12), num_workers=0)
    fitted = model.head.label_embeds
    nudged = torch.nn.functional.normalize(
        fitted + 0.02 * torch.nn.functional.normalize(torch.randn_like(fitted)), dim=-1
    )
    assert model.head.places(nudged).tolist() == list(range(len(LABELS)))


def test_a_threshold_is_of_the_prompt_that_it_was_found_with(tiny):
    model = load_model(tiny, labels=LABELS)
    adapt(model, pictures(12), num_workers=0, expected=2)
    with pytest.raises(UserError, match="threshold: auto is of the model's own prompt") as info:
        Tagger(model, threshold="auto", prompt="{}")
    one_line(info)
    with pytest.raises(UserError, match="probabilities: this model was never calibrated"):
        Tagger(model, threshold="auto", probabilities=True)


def test_prompts_that_name_no_label_are_refused(tiny):
    model = load_model(tiny, labels=LABELS, scoring=sparc(["a car next to a house"]))
    with pytest.raises(UserError, match="no prompt names one of the labels") as info:
        adapt(model, pictures(12), num_workers=0)
    one_line(info)


def test_the_card_of_a_fitted_model_says_what_it_scores(tiny, tmp_path):
    model = load_model(tiny, labels=LABELS, scoring="piaa")
    adapt(model, pictures(12), num_workers=0)
    save_model(model, tmp_path / "fitted")
    save_model(load_model(tiny, labels=LABELS), tmp_path / "plain")
    fitted, plain = ((tmp_path / name / "README.md").read_text() for name in ("fitted", "plain"))
    for text in ("any list of label names", "--labels"):
        assert text in plain
        assert text not in fitted


@pytest.mark.parametrize("scoring", ["piaa", "sparc", sparc(["a cat next to a dog", "an owl and a bee"])], ids=str)
def test_a_damaged_fit_is_one_line(scoring, tiny, tmp_path):
    model = load_model(tiny, labels=LABELS, scoring=scoring)
    adapt(model, pictures(12), num_workers=0)
    save_model(model, tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    whole = load_file(file)
    fitted = [name for name, value in whole.items() if name.startswith("head.") and value.dim()]
    assert {"head.label_embeds", *(f"head.{name}" for name in model.head.fitted_shapes(5, 16))} <= set(fitted)
    for name in fitted:
        for shape in ((7, 3), (5, 7), (2,), (1, 1, 1)):
            save_file({**whole, name: torch.zeros(shape, dtype=whole[name].dtype)}, file, {"format": "pt"})
            with pytest.raises(UserError) as info:
                Tagger(load_model(tmp_path / "saved"), num_workers=0).predict(pictures(1))
            one_line(info)
