"""Heads that need no annotated images, against the published codes; what their steps cannot change."""

import pytest
import torch
from conftest import reference_numbers
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.decomposition import PCA
from torch.nn import functional as F
from training_free import hidden_states, pixels, reference_clip

from ovml import UserError
from ovml.encoders import ImageFeatures
from ovml.encoders.sources import ITACLIP, SCCLIP, SCLIP, CLIPSurgery, MaskCLIP
from ovml.heads import GaussianHead, GlobalHead, PromptFusionHead, StandardizedHead, SurgeryHead
from ovml.heads.gaussian import gaussians, surest
from ovml.heads.prompt_fusion import principal_direction, prompts_of_labels
from ovml.heads.refinement import component_boxes, patch_attention, refined
from ovml.heads.standardized import standardized
from ovml.vocabulary import LabelVocabulary

SOURCES = {"scclip": SCCLIP(), "sclip": SCLIP(), "itaclip": ITACLIP()}
SETTINGS = {"coco": (0.01, 80, 400), "voc": (100, 80, 200)}


class Reference:
    """The published numbers, and what the small CLIP computes of its images."""

    def __init__(self):
        self.golden = reference_numbers("training_free_golden.safetensors")
        self.plain = reference_numbers("training_free_golden.json")
        self.clip = reference_clip(self.golden)
        self.layers = list(self.clip.vision_model.encoder.layers)
        self.labels = LabelVocabulary(tuple(self.plain["classes"]))
        with torch.no_grad():
            self.states = hidden_states(self.clip.vision_model, pixels(self.golden["images"]))
            self.global_embeds = self.embed(self.states[-1])[:, 0]

    @torch.no_grad()
    def embed(self, hidden):
        return self.clip.visual_projection(self.clip.vision_model.post_layernorm(hidden))

    @torch.no_grad()
    def features(self, source, images):
        patches = source.patches([state[images] for state in self.states], self.layers)
        return ImageFeatures(self.global_embeds[images], self.embed(patches))


@pytest.fixture(scope="module")
def reference():
    return Reference()


def distance(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def no_texts(texts):
    raise AssertionError("no text is needed")


@pytest.mark.parametrize(
    ("source", "data"), [("scclip", "coco"), ("sclip", "coco"), ("itaclip", "coco"), ("sclip", "voc")]
)
def test_gaussian_head_is_piaa_s(source, data, reference):
    golden, name = reference.golden, f"piaa.{source}.{data}"
    head = GaussianHead(reference.plain["piaa_k"], *SETTINGS[data])
    head.begin(reference.labels, golden["text.photo"], no_texts)
    for start in range(0, 24, 5):
        head.observe(reference.features(SOURCES[source], slice(start, min(24, start + 5))))
    first, second = reference.plain[f"{name}.bank_sizes"]
    kept = head._kept
    assert {str(i): len(own.patches) for i, own in enumerate(kept)} == first
    labels = torch.arange(9).repeat_interleave(torch.tensor([len(own.patches) for own in kept]))
    patches, shares = (torch.cat([getattr(own, part) for own in kept]) for part in ("patches", "shares"))
    weight, bias = gaussians(patches, shares, labels, head.label_embeds)
    assert distance(weight, golden[f"{name}.W0"]) < 1e-4
    assert distance(bias, golden[f"{name}.b0"]) < 1e-4
    sure, again, _ = surest(patches, weight, bias, head.sharpness)
    sizes = again[sure].bincount(minlength=9).tolist()
    assert {str(i): size for i, size in enumerate(sizes) if size} == second
    head.finish()
    assert distance(head.weight, golden[f"{name}.W"]) < 1e-4
    assert distance(head.bias, golden[f"{name}.b"]) < 1e-4
    tests = reference.features(SOURCES[source], slice(24, 27))
    logits = F.normalize(tests.patch_embeds, dim=-1) @ head.weight + head.bias
    assert distance(logits, golden[f"{name}.patch_logits"]) < 1e-4
    assert distance(head(tests, golden["text.photo"]), golden[f"{name}.scores"]) < 1e-4


def test_prompt_fusion_is_sparc_s(reference):
    golden = reference.golden
    head = PromptFusionHead(reference.plain["compound"])
    bare = F.normalize(torch.linalg.lstsq(unit(reference.global_embeds), golden["sparc.cos.simple"]).solution.T, dim=-1)
    assert bare.shape == (9, 48)
    found = prompts_of_labels(head.prompts, reference.labels.names)
    assert found == list(reference.plain["sparc_prompts_of_label"].values())
    rows = [standardized(golden["sparc.cos.single"])]
    assert distance(rows[0], golden["sparc.row.single"]) < 5e-5
    of = golden["sparc.cos.simple"]
    rows.append((golden["sparc.cos.compound"] - of.mean(dim=1, keepdim=True)) / of.std(dim=1, keepdim=True))
    assert distance(rows[1], golden["sparc.row.compound"]) < 5e-5
    head.label_embeds = torch.zeros(9, 1)
    head.belongs = torch.tensor([[i in own for i in range(24)] for own in found])
    head._rows = [torch.cat(rows, dim=1)]
    head.finish()
    assert distance(head.directions, golden["sparc.directions"]) < 5e-5
    single, compound = head._by_columns(torch.cat(rows, dim=1))
    assert distance(single, golden["sparc.standard.single"]) < 5e-5
    assert distance(compound, golden["sparc.standard.compound"]) < 5e-5
    fused = torch.stack([head._fused(single[:, i], compound, i) for i in range(9)], dim=1)
    assert distance(fused, golden["sparc.fused"]) < 5e-5


def unit(tensor):
    return F.normalize(tensor, dim=-1)


@torch.no_grad()
def test_surgery_head_is_clip_surgery_s(reference):
    tests = reference.features(CLIPSurgery(), slice(24, 27))
    labels = reference.golden["text.ensemble85"][:9]
    found = SurgeryHead().similarities(tests, labels)
    assert distance(found, reference.golden["surgery.similarity"]) < 1e-5
    assert SurgeryHead()(tests, labels).equal(found[:, 0])


@torch.no_grad()
@pytest.mark.parametrize(("blocks", "part"), [((9, 10, 11), ""), (tuple(range(1, 12)), "stuff.")])
def test_refinement_is_tagclip_s(blocks, part, reference):
    golden, states = reference.golden, [state[24:27] for state in reference.states]
    labels = unit(golden["text.ensemble85"])
    patches = unit(reference.embed(MaskCLIP().patches(states, reference.layers)))
    shares = (reference.clip.logit_scale.exp() * patches @ labels.T).softmax(dim=-1)
    attention = patch_attention(states, reference.layers, blocks)
    maps = refined(shares, attention, (14, 14))
    for i in range(3 if not part else 1):
        assert distance(shares[i], golden[f"tagclip.{i}.coarse"]) < 3e-5
        for name, found in zip(("smoothed", "refined"), maps, strict=True):
            assert distance(found[i], golden[f"tagclip.{i}.{part}{name}"]) < 3e-5
        assert distance(maps[1][i, :, :9].amax(dim=0), golden[f"tagclip.{i}.{part}max"]) < 3e-5


# ---------------------------------------------------------------------- independent references and identities


@given(st.integers(0, 2**16), st.floats(0.1, 0.8))
def test_boxes_are_those_of_scipy_s_components(seed, share):
    bits = torch.rand(3, 6, 9, generator=torch.manual_seed(seed)) < share
    expected = torch.zeros_like(bits)
    for i, one in enumerate(bits.numpy()):
        numbered, _ = ndimage.label(one, structure=[[1, 1, 1]] * 3)
        for rows, columns in ndimage.find_objects(numbered):
            expected[i, rows.start : min(rows.stop, 5), columns.start : min(columns.stop, 8)] = True
    assert component_boxes(bits).equal(expected)


@given(st.integers(0, 2**16))
def test_principal_direction_is_scikit_learn_s(seed):
    scores = torch.randn(20, 4, generator=torch.manual_seed(seed), dtype=torch.float64)
    expected = PCA(1).fit(scores.numpy()).components_[0]
    found = principal_direction(scores).numpy()
    assert abs(found).sum() == pytest.approx(1)
    assert found.mean() >= 0
    assert abs(found @ expected) / (found @ found) ** 0.5 == pytest.approx(1, abs=1e-6)


def random_features(seed, images=6):
    numbers = torch.manual_seed(seed)
    whole, patches = torch.randn(images, 8, generator=numbers), torch.randn(images, 9, 8, generator=numbers)
    return ImageFeatures(whole, patches), torch.randn(5, 8, generator=numbers)


@given(st.integers(0, 2**16))
def test_row_steps_keep_the_order_within_an_image(seed):
    features, labels = random_features(seed)
    features, labels = ImageFeatures(*(tensor.abs() for tensor in features)), labels.abs()  # no cosine below -0.5
    for head, plain in (
        (StandardizedHead(), None),
        (SurgeryHead(), None),
        (StandardizedHead(GlobalHead()), GlobalHead()),
    ):
        expected = plain(features, labels) if plain else unit(features.global_embeds) @ unit(labels).T
        assert head(features, labels).argsort(dim=1).equal(expected.argsort(dim=1))


@given(st.integers(0, 2**16))
def test_columns_of_a_pool_keep_the_order_within_a_label(seed):
    features, labels = random_features(seed)
    head = StandardizedHead(columns=True)
    head.begin(LabelVocabulary(tuple("abcde")), labels, no_texts)
    head.observe(features)
    head.finish()
    assert torch.allclose(head(features, labels).mean(dim=0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(head(features, labels).std(dim=0), torch.ones(5), atol=1e-5)
    rows = StandardizedHead()(features, labels)
    assert head(features, labels).argsort(dim=0).equal(rows.argsort(dim=0))


def test_plurals_and_longer_names_are_told_apart():
    prompts = ["Two people", "men and children", "a hot dog", "hot dogs, dogs", "knives", "buses", "a category"]
    labels = ["person", "man", "child", "dog", "hot dog", "knife", "bus", "cat"]
    assert prompts_of_labels(prompts, labels) == [[0], [1], [1], [3], [2, 3], [4], [5], []]


@pytest.mark.parametrize("head", [GaussianHead(8), PromptFusionHead(["a and b"]), StandardizedHead(columns=True)])
def test_heads_that_are_fitted_say_for_which_labels(head):
    features, labels = random_features(0, 30)
    with pytest.raises(UserError, match="not fitted yet"):
        head(features, labels)
    head.begin(LabelVocabulary(tuple("abcde")), labels, lambda texts: torch.randn(len(texts), 8))
    head.observe(features)
    head.finish()
    assert head(features, labels[[3, 1]]).shape == (30, 2)
    with pytest.raises(UserError, match="1 of 6 labels are not among those that it was fitted for"):
        head(features, torch.cat([labels, -labels[:1]]))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (GaussianHead(8), "0 patches are too few"),
        (PromptFusionHead(["a and b"]), "1 images are too few for a label of 1 prompts; give 3 or more"),
        (StandardizedHead(columns=True), "1 images are too few"),
    ],
)
def test_pools_that_are_too_small_are_refused(head, message):
    features, labels = random_features(0, 1)
    head.begin(LabelVocabulary(tuple("abcde")), labels, lambda texts: torch.randn(len(texts), 8))
    if not isinstance(head, GaussianHead):
        head.observe(features)
    with pytest.raises(UserError, match=message):
        head.finish()


def test_one_label_cannot_be_standardised():
    features, labels = random_features(0)
    with pytest.raises(UserError, match="give two or more"):
        StandardizedHead()(features, labels[:1])
