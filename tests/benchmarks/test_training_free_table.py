"""The rows of the benchmark of scores without training."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from conftest import SHARED
from sklearn.metrics import average_precision_score, f1_score

FILE = Path(__file__).parents[2] / "benchmarks" / "training_free.py"


@pytest.fixture(scope="module")
def table():
    """The script; `training_free` is the name of a module of the tests."""
    spec = importlib.util.spec_from_file_location("training_free_table", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def bench(table):
    return table.Bench("ovml-demo", table.scenes(seed=3, images=12, pool=4))


def test_a_row_has_the_metrics_of_its_scores(table, bench):
    found = table.measure(bench, table.ROWS["cosine"])
    with torch.no_grad():
        scores, targets = bench.cosine.score(bench.pixels), bench.data.targets
    shown = targets.any(dim=0)
    assert found["mAP"] == pytest.approx(100 * average_precision_score(targets[:, shown], scores[:, shown]))
    best = torch.zeros_like(targets).scatter_(1, scores.topk(3).indices, 1)
    assert found["F1"] == pytest.approx(100 * f1_score(targets, best, average="micro"))
    assert found["passes"] == 1
    assert found["fit"] == 0
    name, mean, *_ = table.cells("cosine", [found, found])
    assert (name, mean) == ("cosine", f"{found['mAP']:.1f} ± 0.0")


def test_extra_passes_are_told(table, bench):
    assert table.measure(bench, table.ROWS["best patch, ITACLIP, averaged views"])["passes"] == 5
    second = table.measure(bench, table.ROWS["TagCLIP"])
    assert second["passes"] > 1
    assert (second["passes"] - 1) * 12 == pytest.approx(round((second["passes"] - 1) * 12))  # whole regions


def test_photographs_are_read_with_captions(table):
    photos = SHARED / "photos"
    if not photos.is_dir():
        pytest.skip(f"the photographs are not here: {photos}")
    data = table.photographs(photos, seed=0, images=5, pool=3)
    assert (len(data.images), len(data.pool), len(data.captions)) == (5, 3, 5000)
    assert data.targets.shape == (5, 80)
    assert "keyboard" not in data.background
