import pytest
import torch

from ovml import OVMultiLabelClassifier, VisionStage
from ovml.distillation import FeatureL1
from ovml.heads import Head, OptimalTransportHead


class DetachedHead(Head):
    """A head that the tower does not learn from; distillation alone moves the tower."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, features, label_embeds):
        return self.scale * features.global_embeds.detach() @ label_embeds.T


def test_a_process_without_labelled_images_reaches_all_that_learns(tiny, monkeypatch):
    """DDP waits for all gradients, also for those that come from the distillation alone."""
    stages = [VisionStage(epochs=1, warmup_epochs=0)]
    model = OVMultiLabelClassifier(tiny, ["cat", "dog"], head=DetachedHead(), stages=stages)
    batch = {"pixel_values": torch.randn(2, 3, 48, 48), "labels": torch.tensor([[1, 0], [0, 1]])}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.objective(model.model, model.teacher, batch, model.stage).total.backward()
    assert len(learning) > 30
    assert all(parameter.grad is not None for parameter in learning)

    model.zero_grad()
    batch["labels"].zero_()
    assert model.objective(model.model, model.teacher, batch, model.stage) is None
    monkeypatch.setattr("ovml.training.objective.world_size", lambda: 2)
    loss = model.objective(model.model, model.teacher, batch, model.stage)
    assert (loss.total, loss.images, loss.terms) == (0, 0, {})
    loss.total.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in learning)


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
def test_the_distillation_counts_by_its_weight(tiny, weight):
    stages = [VisionStage(epochs=1, warmup_epochs=0)]
    model = OVMultiLabelClassifier(tiny, ["cat", "dog"], stages=stages, distillation_weight=weight)
    with torch.no_grad():  # as after some training: the student differs from its teacher
        model.model.image_encoder.visual_projection.weight.mul_(1.1)
    batch = {"pixel_values": torch.randn(2, 3, 48, 48), "labels": torch.tensor([[1, 0], [0, 1]])}
    found = model.objective(model.model, model.teacher, batch, model.stage)
    assert found.terms["distillation"] > 0.001
    expected = found.terms["classification"] + weight * found.terms["distillation"]
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.terms["loss"], expected)


@pytest.mark.parametrize("head", [None, OptimalTransportHead()])
def test_without_distillation_the_original_tower_runs_only_for_a_head_that_reads_it(tiny, monkeypatch, head):
    stages = [VisionStage(epochs=1, warmup_epochs=0)]
    model = OVMultiLabelClassifier(tiny, ["cat", "dog"], head=head, stages=stages, distillation_weight=0.0)
    monkeypatch.setattr(FeatureL1, "forward", lambda *_: pytest.fail("computed"))
    if head is None:
        model.teacher.register_forward_hook(lambda *_: pytest.fail("computed"))
    batch = {"pixel_values": torch.randn(2, 3, 48, 48), "labels": torch.tensor([[1, 0], [0, 1]])}
    found = model.objective(model.model, model.teacher, batch, model.stage)
    assert set(found.terms) == {"classification", "loss"}


def test_the_loss_of_a_process_counts_by_its_share_of_the_images(tiny, monkeypatch):
    """The terms are means over its own images, as they are logged; what it minimizes is weighted."""
    model = OVMultiLabelClassifier(tiny, ["cat", "dog"], stages=[VisionStage(epochs=1, warmup_epochs=0)])
    batch = {"pixel_values": torch.randn(3, 3, 48, 48), "labels": torch.tensor([[1, 0], [0, 1], [0, 0]])}
    alone = model.objective(model.model, model.teacher, batch, model.stage)
    asked = []
    share = lambda images, device: asked.append(images) or (lambda: torch.tensor(0.5))  # noqa: E731
    monkeypatch.setattr("ovml.training.objective.image_share", share)
    one = model.objective(model.model, model.teacher, batch, model.stage)
    assert (asked, one.images) == ([2], 2)
    torch.testing.assert_close(one.total, alone.total / 2)
    assert one.terms == alone.terms
