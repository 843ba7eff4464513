import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovml import UserError
from ovml.metrics import PrecisionRecallF1AtK
from ovml.metrics.functional import count_at_k, precision_recall_f1


def naive(preds, targets, k):
    hits = positives = 0
    for scores, own in zip(preds.tolist(), targets.tolist(), strict=True):
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
        hits += sum(own[i] == 1 for i in best)
        positives += own.count(1)
    precision = hits / (len(preds) * k)
    recall = hits / positives if positives else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {f"P@{k}": precision, f"R@{k}": recall, f"F1@{k}": f1}


def example(images=30, labels=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(images, labels, generator=generator),
        torch.randint(-1, 2, (images, labels), generator=generator),
    )


def metric_of(preds, targets, k):
    metric = PrecisionRecallF1AtK(k)
    metric.update(preds, targets)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("k", [3, 5])
def test_published_numbers(golden, golden_json, k):
    published = golden["metric.labels"]
    targets = torch.where(published == 1, 1, torch.where(published == -1, 0, -1))
    f1, precision, recall = golden_json[f"f1@{k}"]
    expected = {f"P@{k}": precision, f"R@{k}": recall, f"F1@{k}": f1}
    assert metric_of(golden["metric.preds"], targets, k) == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 6), st.integers(0, 6), st.integers(1, 8), st.integers(0, 1000))
def test_naive_loop(k, more, images, seed):
    batch = example(images, k + more, seed)
    assert metric_of(*batch, k) == pytest.approx(naive(*batch, k), abs=1e-6)


@given(st.integers(0, 1000))
def test_several_k_at_once(seed):
    batch = example(seed=seed)
    ks = (5, 1, 3)
    assert metric_of(*batch, ks) == pytest.approx({n: v for k in ks for n, v in metric_of(*batch, k).items()})


def test_pooled_over_images_not_averaged():
    preds = torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]])
    targets = torch.tensor([[1, 0, 0], [0, 1, 1]])
    values = metric_of(preds, targets, 1)
    assert values == pytest.approx({"P@1": 1 / 2, "R@1": 1 / 3, "F1@1": 2 / 5})


def test_unknown_in_the_best_is_no_hit():
    values = metric_of(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[-1, 1, 0]]), 2)
    assert values == pytest.approx({"P@2": 0.5, "R@2": 1.0, "F1@2": 2 / 3})


@pytest.mark.parametrize("target", [0, -1])
def test_no_positives(target):
    preds, targets = example()
    assert metric_of(preds, torch.full_like(targets, target), 3) == {"P@3": 0, "R@3": 0, "F1@3": 0}


def test_no_hits_among_positives():
    assert metric_of(torch.tensor([[0.9, 0.1]]), torch.tensor([[0, 1]]), 1) == {"P@1": 0, "R@1": 0, "F1@1": 0}


def test_no_images():
    counts = count_at_k(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.long), 3)
    assert [float(value) for value in precision_recall_f1(counts, 3)] == [0, 0, 0]


def test_pieces_are_the_whole_and_reset_forgets():
    preds, targets = example()
    metric = PrecisionRecallF1AtK(3)
    metric.update(*example(seed=1))
    metric.reset()
    for piece in zip(preds.split([10, 19, 1]), targets.split([10, 19, 1]), strict=True):
        metric.update(*piece)
    assert {name: float(value) for name, value in metric.compute().items()} == metric_of(preds, targets, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores(dtype):
    preds = torch.arange(12).flip(0).view(2, 6).to(dtype)
    targets = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]])
    assert metric_of(preds, targets, 2) == pytest.approx(naive(preds, targets, 2))


def test_all_labels_may_be_taken():
    batch = example(labels=3)
    assert metric_of(*batch, 3)["R@3"] == 1


def test_k_beyond_the_labels():
    with pytest.raises(ValueError, match=r"k=5 and 4 labels"):
        PrecisionRecallF1AtK(5).update(*example(labels=4))


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one(k):
    with pytest.raises(UserError, match=f"k must be at least 1; got {k}"):
        PrecisionRecallF1AtK(k)


@pytest.mark.parametrize(("preds", "targets"), [((5, 3), (5, 4)), ((5,), (5,))])
def test_wrong_shapes(preds, targets):
    with pytest.raises(ValueError, match="preds and targets must both be"):
        PrecisionRecallF1AtK(1).update(torch.zeros(preds), torch.zeros(targets, dtype=torch.long))
