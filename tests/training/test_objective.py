import torch

from ovml import OVMultiLabelClassifier, VisionStage
from ovml.heads import Head


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
