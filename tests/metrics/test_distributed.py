import os

import pytest
import torch
from torch import distributed, multiprocessing

from ovml import LabelVocabulary
from ovml.metrics import (
    MultilabelMeanAveragePrecision,
    OpenVocabularyEvaluation,
    PlattScaling,
    PrecisionRecallF1AtK,
)
from ovml.metrics.functional import each_label
from ovml.metrics.plots.curves import protocol_scores
from ovml.metrics.processes import Processes

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


def example(unknown=0.0):
    generator = torch.Generator().manual_seed(0)
    preds = torch.randint(0, 20, (50, 9), generator=generator) / 20
    targets = torch.randint(-1, 2, (50, 9), generator=generator)
    hidden = torch.rand(targets.shape, generator=generator) < unknown
    return preds, targets.masked_fill(hidden, -1)


VOCABULARY = LabelVocabulary(("a", "b", "c", "d"), ("e", "f", "g", "h", "i"))


def evaluation_of(preds, targets, batch, **arguments):
    evaluation = OpenVocabularyEvaluation(ks=(2,), **arguments)
    evaluation.prepare(VOCABULARY)
    for scores, own in zip(preds.split(batch), targets.split(batch), strict=True):
        if len(scores):
            evaluation.update(lambda columns, scores=scores: scores[:, columns], own)
    evaluation.update_empty()
    return evaluation


def values(preds, targets, batch):
    average_precision = MultilabelMeanAveragePrecision()
    per_label = MultilabelMeanAveragePrecision(average="none", empty_labels="zero")
    half = MultilabelMeanAveragePrecision(average="none", dtype=torch.float16)
    at_k = PrecisionRecallF1AtK(3)
    for piece in zip(preds.split(batch), targets.split(batch), strict=True):
        for metric in (average_precision, per_label, half, at_k):
            metric.update(*piece)
    evaluation = evaluation_of(preds, targets, batch)
    calibration = evaluation.calibrate()
    alone = evaluation.calibration_metrics(calibration)
    drawn = protocol_scores(evaluation, bins=50)
    finished, _ = evaluation.finish("cpu", None, calibrate=True)
    own_thresholds = evaluation_of(preds, targets, batch, calibrator=PlattScaling("per-label", min_present=1))
    return {
        "average precision": average_precision.compute(),
        "per label": per_label.compute(),
        "half": half.compute(),
        **at_k.compute(),
        **finished,
        "slope": calibration.slope,
        "threshold": calibration.threshold,
        "thresholds of labels": own_thresholds.finish("cpu", None, calibrate=True)[1].label_thresholds,
        **{f"drawn {name}": [part.per_label, part.counts.counts, part.counts.edges] for name, part in drawn.items()},
        "calibration error": [alone[name] for name in sorted(alone)],
    }


CASES = [(25, 0.0), (13, 0.0), (30, 0.9), (50, 0.0), (40, None)]
"""Rows of the first process, share of unknown targets; `None`: the last third of the images has mostly unknown ones."""


def case(unknown):
    if unknown is not None:
        return example(unknown)
    preds, targets = example()
    targets[35:] = example(0.9)[1][35:]
    return preds, targets


class Received:
    """Bytes that a process receives from all, and of the largest message."""

    def __init__(self, patch):
        self.total = self.largest = 0
        all_gather, exchange = distributed.all_gather, distributed.all_to_all_single
        patch.setattr(distributed, "all_gather", lambda found, *a, **k: self.add(*found) or all_gather(found, *a, **k))
        patch.setattr(
            distributed, "all_to_all_single", lambda found, *a, **k: self.add(found) or exchange(found, *a, **k)
        )

    def add(self, *tensors):
        size = sum(tensor.nbytes for tensor in tensors)
        self.total, self.largest = self.total + size, max(self.largest, size)


IMAGES, LABELS = 400, 60


def measured(rank):
    """What a dense evaluation receives, with a new calibration, in blocks of two labels."""
    vocabulary = LabelVocabulary(tuple(f"s{i}" for i in range(LABELS - 10)), tuple(f"u{i}" for i in range(10)))
    evaluation = OpenVocabularyEvaluation(ks=(3,), calibrator=PlattScaling("per-label"))
    evaluation.prepare(vocabulary)
    scores = torch.rand(IMAGES // 2, LABELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(each_label, "BLOCK", 2 * IMAGES)
        patch.setattr("ovml.metrics.calibrators.BINS", 16)
        evaluation.update(lambda columns: scores[:, columns], (scores > 0.5).long())
        received = Received(patch)
        evaluation.finish("cpu", None, calibrate=True)
    return {"total": received.total, "largest": received.largest}


def worker(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        for split, unknown in CASES:
            preds, targets = case(unknown)
            rows = slice(0, split) if rank == 0 else slice(split, None)
            torch.save(values(preds[rows], targets[rows], batch=10), f"{folder}/{split}-{rank}.pt")
        torch.save(measured(rank), f"{folder}/measured-{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes found in each case."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(worker, args=(str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize(("split", "unknown"), CASES)
def test_two_processes_give_the_result_of_one(folder, split, unknown):
    """Bit for bit, but for sums of probabilities, which are added in another order."""
    expected = values(*case(unknown), batch=50)
    results = [torch.load(folder / f"{split}-{rank}.pt", weights_only=False) for rank in range(2)]
    for name, value in expected.items():
        ours, theirs = (result.pop(name) for result in results)
        exact = {"atol": 0, "rtol": 0, "equal_nan": True}
        torch.testing.assert_close(ours, theirs, **exact)
        tolerance = {**exact, "atol": 1e-12} if "calibration" in name else exact
        torch.testing.assert_close(ours, value, **tolerance)
    assert results == [{}, {}]


def test_no_process_receives_the_scores_of_all(folder):
    """Each gets its half of the labels once, though the scores serve the metrics and the calibration."""
    for rank in range(2):
        found = torch.load(folder / f"measured-{rank}.pt")
        labels = LABELS + (LABELS - 10) + 10  # of the three protocols
        share = IMAGES * labels * 5 // 2
        assert share <= found["total"] < 1.2 * share
        assert found["largest"] < IMAGES * LABELS * 5 / 4


class Neighbours(Processes):
    """Eight processes, four of them on this machine."""

    def __init__(self):
        super().__init__(torch.device("cpu"), together=False)
        self.size = 8

    def gather(self, values):
        return torch.stack([values] * 4 + [values + 1] * 4)


@pytest.mark.parametrize(("cores", "threads"), [(64, 16), (4, 2), (1, 2)])
def test_threads_are_the_machines_cores_shared_and_at_least_torchs(monkeypatch, cores, threads):
    """`torchrun` leaves each process one thread, and the others of the machine idle."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert Neighbours().threads() == threads
    assert Processes(torch.device("cpu"), together=False).threads() == 2
