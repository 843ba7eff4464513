import pytest
import torch
from torch import distributed, multiprocessing

from ovml import LabelVocabulary
from ovml.metrics import MultilabelMeanAveragePrecision, OpenVocabularyEvaluation, PrecisionRecallF1AtK

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


def example(unknown=0.0):
    generator = torch.Generator().manual_seed(0)
    preds = torch.randint(0, 20, (50, 9), generator=generator) / 20
    targets = torch.randint(-1, 2, (50, 9), generator=generator)
    hidden = torch.rand(targets.shape, generator=generator) < unknown
    return preds, targets.masked_fill(hidden, -1)


def values(preds, targets, batch):
    average_precision = MultilabelMeanAveragePrecision()
    per_label = MultilabelMeanAveragePrecision(average="none", empty_labels="zero")
    at_k = PrecisionRecallF1AtK(3)
    evaluation = OpenVocabularyEvaluation(ks=(2,))
    evaluation.prepare(LabelVocabulary(("a", "b", "c", "d"), ("e", "f", "g", "h", "i")))
    for piece in zip(preds.split(batch), targets.split(batch), strict=True):
        for metric in (average_precision, per_label, at_k):
            metric.update(*piece)
        evaluation.update(lambda columns, scores=piece[0]: scores[:, columns], piece[1])
    evaluation.update_empty()
    with evaluation.gathered():
        calibration = evaluation.calibrate()
        calibrated = evaluation.calibration_metrics(calibration)
    return {
        "average precision": average_precision.compute(),
        "per label": per_label.compute(),
        **at_k.compute(),
        **evaluation.compute(),
        **calibrated,
        "slope": torch.tensor(calibration.slope),
        "calibration alone": evaluation.calibration_metrics(evaluation.calibrate())["calibration/ECE"],
    }


CASES = [(25, 0.0), (13, 0.0), (30, 0.9)]
"""Rows of the first process, share of unknown targets."""


def worker(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        for split, unknown in CASES:
            preds, targets = example(unknown)
            rows = slice(0, split) if rank == 0 else slice(split, None)
            torch.save(values(preds[rows], targets[rows], batch=10), f"{folder}/{split}-{rank}.pt")
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
    expected = values(*example(unknown), batch=50)
    for rank in range(2):
        result = torch.load(folder / f"{split}-{rank}.pt")
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, atol=1e-6, rtol=0)
