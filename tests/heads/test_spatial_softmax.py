"""DualCoOp's aggregation against its formula."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovml import OVMultiLabelClassifier, UserError
from ovml.encoders import ImageFeatures
from ovml.heads import CosineHead, SpatialSoftmaxHead
from ovml.heads.chunks import chunks


def features(batch=2, patches=5, dim=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(batch, 1 + patches, dim, generator=generator, dtype=dtype)
    return ImageFeatures(embeds[:, 0], embeds[:, 1:])


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def naive(image, label, temperature, scale, weight):
    whole, patches = image
    cosines = [cosine(patch, label) for patch in patches]
    exponentials = [math.exp(c / temperature) for c in cosines]
    local = sum(e / sum(exponentials) * c for e, c in zip(exponentials, cosines, strict=True))
    return scale * ((1 - weight) * local + weight * cosine(whole, label))


@given(
    temperature=st.floats(0.02, 5), scale=st.floats(0.5, 100), weight=st.sampled_from([0, 0.3, 1]), seed=st.integers(0)
)
def test_it_is_the_formula_as_a_loop(temperature, scale, weight, seed):
    image = features(seed=seed % 2**32, dtype=torch.float64)
    labels = torch.randn(4, 8, dtype=torch.float64)
    found = SpatialSoftmaxHead(temperature, scale, weight)(image, labels)
    pairs = zip(image.global_embeds.tolist(), image.patch_embeds.tolist(), strict=True)
    expected = [[naive(pair, label, temperature, scale, weight) for label in labels.tolist()] for pair in pairs]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_between_the_mean_and_the_best_patch():
    image, labels = features(patches=9), torch.randn(6, 8)
    cosines = torch.cosine_similarity(image.patch_embeds[:, None], labels[None, :, None], dim=-1)
    for temperature, expected in ((1e6, cosines.mean(dim=-1)), (1e-4, cosines.amax(dim=-1))):
        torch.testing.assert_close(SpatialSoftmaxHead(temperature)(image, labels), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(SpatialSoftmaxHead(global_weight=1.0)(image, labels), CosineHead()(image, labels))


@given(order=st.permutations(range(5)), kept=st.integers(1, 5))
def test_a_label_s_score_depends_on_no_other(order, kept):
    image, labels = features(), torch.randn(5, 8)
    head = SpatialSoftmaxHead(global_weight=0.5)
    torch.testing.assert_close(head(image, labels[order][:kept]), head(image, labels)[:, order][:, :kept])


@pytest.mark.parametrize("budget", [1, 70, 10_000])
def test_labels_in_chunks_give_the_same_scores_and_gradients(budget, monkeypatch):
    results = []
    labels, weights = torch.randn(37, 8), torch.randn(2, 37)
    for value in (10**9, budget):
        monkeypatch.setattr("ovml.heads.chunks.CPU_BUDGET", value)
        image = ImageFeatures(*(x.clone().requires_grad_() for x in features()))
        scores = SpatialSoftmaxHead(global_weight=0.5)(image, labels)
        (scores * weights).sum().backward()
        results.append((scores, *(x.grad for x in image)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_chunks_fit_the_budget_and_are_all_rows(monkeypatch):
    monkeypatch.setattr("ovml.heads.chunks.CPU_BUDGET", 100)
    rows = torch.randn(23, 3)
    for numbers in (1, 30, 1000):
        cut = chunks(rows, numbers)
        assert torch.equal(torch.cat(cut), rows)
        assert all(len(chunk) * numbers <= max(100, numbers) for chunk in cut)


def test_zero_and_no_images():
    labels = torch.randn(4, 8)
    image = ImageFeatures(torch.zeros(1, 8, requires_grad=True), torch.zeros(1, 3, 8, requires_grad=True))
    scores = SpatialSoftmaxHead(global_weight=0.5)(image, labels)
    scores.sum().backward()
    assert torch.equal(scores, torch.zeros(1, 4))
    assert all(embeds.grad.isfinite().all() for embeds in image)
    assert SpatialSoftmaxHead()(features(batch=0), labels).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    image, labels = features(), torch.randn(4, 8)
    found = SpatialSoftmaxHead()(ImageFeatures(*(x.to(dtype) for x in image)), labels.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), SpatialSoftmaxHead()(image, labels), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "SpatialSoftmaxHead: temperature must be greater than 0; got 0"),
        ({"temperature": float("nan")}, "temperature must be a finite number; got nan"),
        ({"scale": -1.0}, r"scale must be greater than 0; got -1\.0"),
        ({"global_weight": 1.5}, r"global_weight must be from 0 to 1; got 1\.5"),
    ],
)
def test_arguments_out_of_range_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        SpatialSoftmaxHead(**arguments)
    assert "\n" not in str(error.value)


def test_a_loaded_model_scores_the_same(tiny, tmp_path):
    model = OVMultiLabelClassifier(tiny, ["cat", "dog"], head=SpatialSoftmaxHead(0.1, 100.0, 0.25)).eval()
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(again(pixels, ["a", "b c"]), model(pixels, ["a", "b c"]))
    assert (again.model.head.temperature, again.model.head.scale, again.model.head.global_weight) == (0.1, 100.0, 0.25)
