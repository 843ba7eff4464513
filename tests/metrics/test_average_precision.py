import errno
import os
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torchmetrics.classification import MultilabelAveragePrecision

from ovml import UserError
from ovml.metrics import MultilabelMeanAveragePrecision, PrecisionRecallF1AtK
from ovml.metrics.functional import average_precision

module = sys.modules["ovml.metrics.functional.each_label"]


def example(images=60, labels=9, levels=7, seed=0, unknown=True):
    """Scores in 0..1 of a few levels, so that most are tied."""
    generator = torch.Generator().manual_seed(seed)
    preds = torch.randint(0, levels, (images, labels), generator=generator) / levels
    targets = torch.randint(-1 if unknown else 0, 2, (images, labels), generator=generator)
    targets[0] = 1
    return preds, targets


def by_sklearn(preds, targets):
    values = []
    for scores, found in zip(preds.T, targets.T, strict=True):
        known = found != -1
        empty = not (found == 1).any()
        values.append(torch.nan if empty else average_precision_score(found[known], scores[known].float()))
    return torch.tensor(values, dtype=torch.float32)


def by_torchmetrics(preds, targets, average, ignore_index=None):
    metric = MultilabelAveragePrecision(preds.shape[1], average=average, thresholds=None, ignore_index=ignore_index)
    return metric(preds, targets.clamp(min=0) if ignore_index is None else targets)


def metric_of(preds, targets, **kwargs):
    metric = MultilabelMeanAveragePrecision(**kwargs)
    metric.update(preds, targets)
    return metric.compute()


@st.composite
def columns(draw):
    images, labels = draw(st.integers(1, 14)), draw(st.integers(1, 4))
    size = images * labels
    scores = draw(st.lists(st.integers(-4, 4), min_size=size, max_size=size))
    targets = draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=size, max_size=size))
    return torch.tensor(scores).view(images, labels) / 4, torch.tensor(targets).view(images, labels)


@given(columns())
def test_scikit_learn_with_ties_and_unknowns(batch):
    torch.testing.assert_close(average_precision(*batch), by_sklearn(*batch), equal_nan=True)


@pytest.mark.parametrize("levels", [1, 2, 7, 1_000_000])
@pytest.mark.parametrize("unknown", [False, True])
def test_scikit_learn(levels, unknown):
    preds, targets = example(levels=levels, unknown=unknown)
    torch.testing.assert_close(average_precision(preds, targets), by_sklearn(preds, targets))


@pytest.mark.parametrize("average", ["macro", "none"])
@pytest.mark.parametrize("ignore_index", [None, -1])
def test_torchmetrics(average, ignore_index):
    preds, targets = example(unknown=ignore_index is not None)
    expected = by_torchmetrics(preds, targets, average, ignore_index)
    torch.testing.assert_close(metric_of(preds, targets, average=average), expected)


def test_empty_labels_are_zero_in_torchmetrics_too():
    preds, targets = example(unknown=False)
    targets[:, 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = by_torchmetrics(preds, targets, "macro")
    torch.testing.assert_close(metric_of(preds, targets, empty_labels="zero"), expected)


def test_published_numbers(golden, golden_json):
    preds, published = golden["metric.preds"], golden["metric.labels"]
    targets = torch.where(published == 1, 1, torch.where(published == -1, 0, -1))
    zero, skip = (metric_of(preds, targets, empty_labels=rule) for rule in ("zero", "skip"))
    per_label = metric_of(preds, targets, empty_labels="zero", average="none")
    torch.testing.assert_close(per_label, golden["metric.ap_per_label"], atol=1e-6, rtol=0)
    assert float(zero) == pytest.approx(golden_json["mean_ap_empty_as_zero"], abs=1e-6)
    assert float(skip) == pytest.approx(golden_json["mean_ap_labels_with_positives"], abs=1e-6)


def test_published_targets_by_ignore_index(golden, golden_json):
    value = metric_of(golden["metric.preds"], golden["metric.labels"], ignore_index=0)
    assert float(value) == pytest.approx(golden_json["mean_ap_labels_with_positives"], abs=1e-6)


@pytest.mark.parametrize("unknown", [-100, 255, 2])
def test_any_number_for_the_unknown(unknown):
    preds, targets = example()
    changed = targets.masked_fill(targets == -1, unknown)
    expected = average_precision(preds, targets)
    torch.testing.assert_close(average_precision(preds, changed, ignore_index=unknown), expected)
    torch.testing.assert_close(metric_of(preds, changed, average="none", ignore_index=unknown), expected)


def test_empty_labels():
    preds, targets = example(labels=4)
    targets[:, 1] = 0
    targets[:, 3] = -1
    ap = average_precision(preds, targets)
    assert ap.isnan().tolist() == [False, True, False, True]
    torch.testing.assert_close(metric_of(preds, targets), (ap[0] + ap[2]) / 2)
    torch.testing.assert_close(metric_of(preds, targets, empty_labels="zero"), (ap[0] + ap[2]) / 4)
    assert metric_of(preds, targets, average="none").isnan().tolist() == [False, True, False, True]
    assert metric_of(preds, targets, average="none", empty_labels="zero")[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_is_no_score(dtype):
    preds, targets = example()
    preds = preds.to(dtype)
    preds[3, 2], targets[3, 2] = torch.nan, -1  # unknown entries count too: the model is at fault
    calls = [
        lambda: average_precision(preds, targets),
        lambda: metric_of(preds, targets),
        lambda: PrecisionRecallF1AtK(1).update(preds, targets),
    ]
    for call in calls:
        with pytest.raises(UserError, match="NaN for image 3 of the batch and label 2"):
            call()
    preds[3, 2] = torch.inf
    assert average_precision(preds, targets).isfinite().any()


def test_nothing_to_compute():
    metric = MultilabelMeanAveragePrecision()
    with pytest.warns(UserWarning, match="before"), pytest.raises(ValueError, match="call update first"):
        metric.compute()


def test_no_label_with_a_positive():
    preds, targets = torch.rand(5, 3), torch.zeros(5, 3, dtype=torch.long)
    assert metric_of(preds, targets).isnan()
    assert metric_of(preds, targets, empty_labels="zero") == 0


@pytest.mark.parametrize("block", [1, 60, 61, 120, 300, 539, 540, 10_000])
def test_blocks_of_labels_give_the_same(monkeypatch, block):
    preds, targets = example()
    expected = average_precision(preds, targets)
    monkeypatch.setattr(module, "BLOCK", block)
    torch.testing.assert_close(average_precision(preds, targets), expected, atol=0, rtol=0)


@pytest.mark.parametrize("sizes", [[60], [1, 59], [20, 20, 20], [7] * 8 + [4]])
def test_pieces_are_the_whole(sizes):
    preds, targets = example()
    metric = MultilabelMeanAveragePrecision()
    for piece in zip(preds.split(sizes), targets.split(sizes), strict=True):
        metric.update(*piece)
    torch.testing.assert_close(metric.compute(), metric_of(preds, targets), atol=0, rtol=0)


def mostly_unknown(images=60, labels=9, seed=0):
    preds, targets = example(images, labels, seed=seed)
    hidden = torch.rand(targets.shape, generator=torch.Generator().manual_seed(seed)) < 0.9
    return preds, targets.masked_fill(hidden, -1)


def test_of_mostly_unknown_targets_only_the_known_are_kept():
    preds, targets = mostly_unknown(images=200)
    metric = MultilabelMeanAveragePrecision(average="none")
    for piece in zip(preds.split(30), targets.split(30), strict=True):
        metric.update(*piece)
    kept = sum(piece.numel() for piece in metric.known_preds)
    assert kept == (targets != -1).sum()
    assert not any(map(len, metric.preds))
    torch.testing.assert_close(metric.compute(), by_sklearn(preds, targets), equal_nan=True)


def test_mostly_known_and_mostly_unknown_batches_mix():
    pairs = [example(seed=1), mostly_unknown(seed=2), example(seed=3), mostly_unknown(seed=4)]
    metric = MultilabelMeanAveragePrecision(average="none")
    for pair in pairs:
        metric.update(*pair)
    whole = [torch.cat(parts) for parts in zip(*pairs, strict=True)]
    torch.testing.assert_close(metric.compute(), by_sklearn(*whole), equal_nan=True)


def test_a_last_label_without_any_annotation_is_still_counted():
    metric = MultilabelMeanAveragePrecision(average="none", empty_labels="zero")
    metric.update(torch.rand(9, 4), torch.full((9, 4), -1).index_fill(1, torch.tensor([0]), 1)[:, [0, 1, 2, 3]])
    assert metric.compute().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("make", [example, mostly_unknown])
def test_scores_may_be_kept_in_half_precision(make):
    preds, targets = make(images=100)
    preds = preds + 1e-5 * torch.arange(len(preds)).unsqueeze(1)
    metric = MultilabelMeanAveragePrecision(average="none", dtype=torch.float16)
    metric.update(preds, targets)
    assert all(piece.dtype == torch.float16 for piece in [*metric.preds, *metric.known_preds])
    torch.testing.assert_close(metric.compute(), by_sklearn(preds.half(), targets), equal_nan=True)


@pytest.mark.parametrize("modes", [(True, False), (False, True)])
def test_updates_in_and_outside_of_inference_mode_mix(modes):
    preds, targets = example()
    metric = MultilabelMeanAveragePrecision()
    for piece, mode in zip(zip(preds.split(10), targets.split(10), strict=True), modes * 3, strict=True):
        with torch.inference_mode(mode):
            metric.update(*piece)
    torch.testing.assert_close(metric.compute(), metric_of(preds, targets), atol=0, rtol=0)


def test_scores_are_copied():
    preds, targets = example()
    metric = MultilabelMeanAveragePrecision()
    given = preds.clone(), targets.clone()
    metric.update(*given)
    for tensor in given:
        tensor.zero_()
    torch.testing.assert_close(metric.compute(), metric_of(preds, targets), atol=0, rtol=0)


def test_reset_forgets():
    metric = MultilabelMeanAveragePrecision()
    metric.update(*example(seed=1))
    metric.reset()
    metric.update(*example(seed=2))
    torch.testing.assert_close(metric.compute(), metric_of(*example(seed=2)))


def test_forward_gives_the_value_of_the_batch():
    metric = MultilabelMeanAveragePrecision()
    for seed in (1, 2):
        torch.testing.assert_close(metric(*example(seed=seed)), metric_of(*example(seed=seed)))
    both = [torch.cat(pair) for pair in zip(example(seed=1), example(seed=2), strict=True)]
    torch.testing.assert_close(metric.compute(), metric_of(*both))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_kinds_of_scores(dtype):
    preds, targets = example(levels=1000)
    preds = preds.to(dtype)
    result = average_precision(preds, targets)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, by_sklearn(preds, targets))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_kinds_of_targets(dtype):
    preds, targets = example()
    torch.testing.assert_close(metric_of(preds, targets.to(dtype)), metric_of(preds, targets))


def test_targets_are_kept_in_bytes_and_scores_without_a_graph():
    preds, targets = example()
    metric = MultilabelMeanAveragePrecision()
    metric.update(preds.requires_grad_(), targets)
    assert metric.targets[0].dtype == torch.int8
    assert not metric.preds[0].requires_grad


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_nothing_to_score(shape):
    result = average_precision(torch.zeros(shape), torch.zeros(shape, dtype=torch.long))
    assert result.shape == shape[1:]
    assert result.isnan().all()


@pytest.mark.parametrize("score", [average_precision, metric_of])
@pytest.mark.parametrize(("preds", "targets"), [((5, 3), (5, 4)), ((5,), (5,)), ((5, 3, 2), (5, 3, 2))])
def test_wrong_shapes(score, preds, targets):
    with pytest.raises(ValueError, match="preds and targets must both be"):
        score(torch.zeros(preds), torch.zeros(targets, dtype=torch.long))


@pytest.mark.parametrize("name", ["empty_labels", "average"])
def test_wrong_arguments(name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*'weighted'"):
        MultilabelMeanAveragePrecision(**{name: "weighted"})


@pytest.mark.parametrize("unknown", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scores_in_files_give_the_same_and_leave_nothing_behind(unknown, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    torch.manual_seed(0)
    metrics = [MultilabelMeanAveragePrecision(dtype=dtype, memory=memory) for memory in (1 << 30, 500, 0)]
    for size in (5, 40, 1, 0, 17):
        scores, targets = torch.randn(size, 12), (torch.rand(size, 12) < 0.3).long()
        targets[torch.rand(size, 12) < unknown] = -1
        for metric in metrics:
            metric.update(scores, targets)
    values = [metric.per_label() for metric in metrics]
    torch.testing.assert_close(values[1:], [values[0]] * 2, rtol=0, atol=0, equal_nan=True)
    mapped = [_mapped(metric, tmp_path) for metric in metrics]
    assert not mapped[0]
    assert mapped[1]
    assert mapped[2]
    assert not list(tmp_path.iterdir())
    metrics[2].reset()
    metrics[2].update(torch.tensor([[0.9, 0.1]]), torch.tensor([[1, 0]]))
    assert metrics[2].compute() == 1


def _mapped(metric, folder):
    """Addresses of the metric's pieces that lie in files of a folder."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if str(folder) in line]
    addresses = [piece.data_ptr() for piece in [*metric.preds, *metric.targets, *metric.known_preds] if len(piece)]
    return [a for a in addresses for start, end in ranges if int(start, 16) <= a < int(end, 16)]


def test_on_a_full_disk_scores_stay_in_memory(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    metric = MultilabelMeanAveragePrecision(memory=0)
    metric.update(torch.tensor([[0.9], [0.1]]), torch.tensor([[1], [0]]))
    assert metric.compute() == 1


@pytest.mark.parametrize(("unknown", "chunk"), [(0.0, 400), (0.95, 40), (None, 400)])
def test_pieces_hold_the_same_rows_whatever_they_are_kept_in(unknown, chunk, monkeypatch):
    monkeypatch.setattr("ovml.metrics.average_precision.CHUNK", chunk)  # scores end sooner than targets
    torch.manual_seed(0)
    metric, batches = MultilabelMeanAveragePrecision(), []
    for i in range(24):
        scores, targets = torch.randn(7, 10), (torch.rand(7, 10) < 0.3).long()
        targets[torch.rand(7, 10) < (0.95 * (i % 2) if unknown is None else unknown)] = -1
        metric.update(scores, targets)
        batches.append((scores, targets))
    pairs = [(metric.preds, metric.targets), (metric.known_preds, metric.known_positive)]
    assert any(list(map(len, one)) != list(map(len, other)) for one, other in pairs)
    scores, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    rows = zip(
        scores.flatten().tolist(),
        torch.arange(10).repeat(len(scores)).tolist(),
        targets.flatten().tolist(),
        strict=True,
    )
    found = []
    for some, own, labels in metric.pieces():
        labels = torch.arange(10).expand_as(some) if labels is None else labels
        found += zip(*(part.flatten().tolist() for part in (some, labels, own)), strict=True)
    assert sorted(row for row in found if row[2] >= 0) == sorted(row for row in rows if row[2] >= 0)
    torch.testing.assert_close(metric.per_label(), by_sklearn(scores, targets), equal_nan=True, check_dtype=False)


@given(st.integers(0, 2**16))
def test_labels_without_a_mark_are_left_out_and_others_without_a_positive_are_zero(seed):
    """BiAM's way on Open Images."""
    numbers = torch.manual_seed(seed)
    preds = torch.rand(12, 6, generator=numbers)
    targets = torch.randint(-1, 2, (12, 6), generator=numbers)
    targets[:, 0], targets[:, 1] = -1, targets[:, 1].clamp(max=0)
    targets[0, 1] = 0
    values = []
    for label in range(6):
        known = targets[:, label] != -1
        if known.any():
            present = targets[known, label].numpy()
            values.append(average_precision_score(present, preds[known, label].numpy()) if present.any() else 0.0)
    found = metric_of(preds, targets, empty_labels="zero_if_marked")
    assert float(found) == pytest.approx(sum(values) / len(values), abs=1e-6)
    each = metric_of(preds, targets, empty_labels="zero_if_marked", average="none")
    assert each[0].isnan()
    assert each[1] == 0
