"""The training of CoOp and DualCoOp."""

import math

import lightning.pytorch as pl
import pytest
import torch

from ovml import OVMultiLabelClassifier, PromptStage, UserError
from ovml.data import DemoDataModule
from ovml.heads import DualCoOpHead
from ovml.losses import AsymmetricLoss
from ovml.prompts import DualCoOpPrompt
from ovml.training import CoOpStage
from ovml.training.objective import scored_labels


def published_rates(epochs, lr):
    """Constant warm-up of an epoch around torch's cosine, which is stepped after each later epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(epochs))
    rates = [1e-5]
    for _ in range(1, epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    return rates


@pytest.mark.parametrize("epochs", [50, 3])
def test_rates_are_those_of_each_epoch(epochs):
    stage = CoOpStage(epochs=epochs)
    optimizer = stage.optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))], "weight_decay": 5e-4}])
    assert optimizer.defaults["momentum"] == 0.9
    found = stage.schedule(optimizer, 7 * epochs, epochs)
    assert found["interval"] == "epoch"
    for expected in published_rates(epochs, 2e-3):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-6)
        optimizer.step()
        found["scheduler"].step()


def test_a_short_training_learns_the_contexts_and_nothing_else():
    data = DemoDataModule(train_size=24, eval_size=12, batch_size=8, num_workers=0)
    loss = AsymmetricLoss(2.0, 1.0, eps=1e-6, reduction="sum", factor=0.01)
    stage = CoOpStage(epochs=3, labels_per_step=20)
    model = OVMultiLabelClassifier(
        "ovml-demo", data.vocabulary, head=DualCoOpHead(), prompt=DualCoOpPrompt(4), loss=loss, stages=[stage]
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = pl.Trainer(
        max_epochs=3, limit_val_batches=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"model.prompt.present_context", "model.prompt.absent_context"}
    assert {"val/zsl/mAP", "val/gzsl/mAP"} <= set(trainer.callback_metrics)
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)


def test_labels_of_a_step_are_drawn_without_regard_to_the_batch(tiny):
    names = [f"{a}{b}" for a in "abcdefgh" for b in "klmnop"]
    model = OVMultiLabelClassifier(tiny, names, head=DualCoOpHead(), prompt=DualCoOpPrompt(4), stages=[]).model
    targets = torch.zeros(2, 48, dtype=torch.int8)
    targets[:, :6] = 1
    torch.manual_seed(0)
    kept = {}
    for stage in (CoOpStage(labels_per_step=12), PromptStage(labels_per_step=12)):
        drawn = [scored_labels(model, targets, stage) for _ in range(8)]
        assert all(embeds.shape[:2] == (12, 2) and own.shape == (2, 12) for embeds, own, _ in drawn)
        kept[stage.name] = [int(own[0].sum()) for _, own, _ in drawn]
    assert set(kept["prompt"]) == {6}
    assert min(kept["coop"]) < 3
    embeds, own, _ = scored_labels(model, targets, CoOpStage(labels_per_step=48))
    assert embeds.shape == (48, 2, 16)
    assert torch.equal(own, targets)


def test_bad_arguments_are_one_line():
    with pytest.raises(UserError, match="stage 'coop': momentum must be from 0 to 1; got 2"):
        CoOpStage(momentum=2)
    with pytest.raises(UserError, match="stage 'coop': warmup_lr must be 0 or greater"):
        CoOpStage(warmup_lr=-math.pi)
