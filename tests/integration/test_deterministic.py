"""`--trainer.deterministic true`: nothing in the demo is refused on a GPU, and two runs give the same bits."""

import json

import pytest
import torch
from commands import SMALL, ovml_here
from deterministic import AsOnAGPU

from ovml.encoders import ImageFeatures
from ovml.heads import CosineHead, OptimalTransportHead, QueryHead, SpatialSoftmaxHead, TeacherFeatures, TwoStreamHead
from ovml.losses import (
    AsymmetricLoss,
    BinaryCrossEntropy,
    LearnedMarginRankingLoss,
    MultiMatchingLoss,
    RankingLoss,
    SpreadMarginRankingLoss,
    ZLPRLoss,
)


@pytest.fixture
def restored(monkeypatch):
    """Lightning turns the mode on for the whole process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    yield
    torch.use_deterministic_algorithms(False)


def fit(root):
    stage = {"epochs": 1, "warmup_epochs": 0}
    stages = [{"class_path": f"ovml.training.{name}", "init_args": stage} for name in ("VisionStage", "PromptStage")]
    options = ["--model.stages", json.dumps(stages), "--data.cache_dir", str(root / "cache")]
    options += ["--trainer.deterministic", "true", "--trainer.default_root_dir", str(root)]
    with AsOnAGPU() as spy:
        assert ovml_here("fit", "--config", "demo.yaml", *SMALL, *options) == 0
    assert torch.are_deterministic_algorithms_enabled()
    run = root / "version_0"
    weights = torch.load(run / "prompt" / "last.ckpt", weights_only=True)["state_dict"]
    return spy.counts, weights, json.loads((run / "results.json").read_text())


def test_the_demo_runs_as_on_a_gpu_and_repeats_itself(restored, tmp_path):
    counts, weights, results = fit(tmp_path / "one")
    _, again, results_again = fit(tmp_path / "two")
    assert {"native_layer_norm_backward", "topk", "searchsorted", "index_add_"} < counts.keys()
    assert results == results_again
    torch.testing.assert_close(weights, again, atol=0, rtol=0)


def test_what_a_gpu_refuses_is_refused(restored):
    torch.use_deterministic_algorithms(True)
    for refused in (lambda: torch.rand(3).cumsum(0), lambda: torch.bincount(torch.tensor([1]), torch.rand(1))):
        with AsOnAGPU(), pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            refused()
    with AsOnAGPU():
        torch.tensor([1, 2]).cumsum(0)
        torch.bincount(torch.tensor([1]))


@pytest.mark.parametrize(
    "loss", [RankingLoss(), BinaryCrossEntropy(), AsymmetricLoss(), LearnedMarginRankingLoss(), MultiMatchingLoss(),
             SpreadMarginRankingLoss(), ZLPRLoss()], ids=lambda loss: type(loss).__name__)  # fmt: skip
@pytest.mark.parametrize(
    "head", [TwoStreamHead(2), CosineHead(), OptimalTransportHead(), QueryHead(), SpatialSoftmaxHead()],
    ids=lambda head: type(head).__name__)  # fmt: skip
def test_heads_and_losses_run_as_on_a_gpu(restored, head, loss):
    torch.use_deterministic_algorithms(True)
    features = ImageFeatures(torch.randn(4, 8, requires_grad=True), torch.randn(4, 6, 8, requires_grad=True))
    labels, targets = torch.randn(9, 8, requires_grad=True), torch.tensor([[1, -1, 1] + [0] * 6] * 4)
    with AsOnAGPU():
        scores = head.bind(8).training_logits(features, labels, targets, TeacherFeatures(*features, labels))
        torch.stack([loss(some, targets) for some in scores]).sum().backward()
    assert labels.grad.isfinite().all()
