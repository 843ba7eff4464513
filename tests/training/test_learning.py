"""What an optimizer of a real `Trainer` holds in each stage, and the rates of every step."""

import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from test_classifier import VOCABULARY, rows
from torch.utils.data import DataLoader

from ovml import HeadStage, OVMultiLabelClassifier, PromptStage, VisionStage
from ovml.heads import OptimalTransportHead, QueryHead
from ovml.losses import ZLPRLoss
from ovml.training import LadderStage, LoRAStage, VisualPromptStage

BLOCK = "model.image_encoder.vision_model.encoder.layers"
TOWER = "model.image_encoder"
LOSS = {"objective.loss.log_scale", "objective.loss.learned_offset"}
OTHER = {"lr": 0.02, "min_lr": 0.001, "weight_decay": 0.3}
SHORT = {"epochs": 2, "warmup_epochs": 1}


class Watch(Callback):
    """Keeps the optimizer, and the rates of its groups before every batch and after the last."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        (self.optimizer,) = trainer.optimizers
        if not hasattr(self, "groups"):
            names = {id(p): name for name, p in pl_module.named_parameters()}
            self.groups = {
                group["name"]: (group["weight_decay"], {names[id(p)] for p in group["params"]})
                for group in self.optimizer.param_groups
            }
            self.rates = []
        self.rates.append({group["name"]: group["lr"] for group in self.optimizer.param_groups})

    def on_train_end(self, trainer, pl_module):
        self.rates.append({group["name"]: group["lr"] for group in self.optimizer.param_groups})


def watched(tiny, stage, accumulate=1, **parts):
    """A fit of one stage: two epochs of four batches."""
    torch.manual_seed(0)
    parts = {"head": OptimalTransportHead(), "loss": ZLPRLoss(learned=True), **parts}
    model, watch = OVMultiLabelClassifier(tiny, VOCABULARY, stages=[stage], **parts), Watch()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"accelerator": "cpu", "enable_model_summary": False}
    trainer = Trainer(callbacks=[watch], max_epochs=2, accumulate_grad_batches=accumulate, **quiet)
    trainer.fit(model.train(), DataLoader(rows(8), 2))
    return model, watch


def of(prefix, model, matrices):
    """Names of the matrices, or of all else, below a prefix."""
    return {n for n, p in model.named_parameters() if n.startswith(prefix) and (p.ndim > 1) == matrices}


def test_the_vision_stage_has_a_rate_for_every_block_and_no_decay_of_vectors(tiny):
    model, watch = watched(tiny, VisionStage(**SHORT, **OTHER, layer_decay=0.5, num_layers=2))
    head = {"model.head.log_temperature", "model.head.log_local_temperature"}
    assert type(watch.optimizer) is torch.optim.AdamW
    assert watch.groups == {
        "layer_2_decay": (0.3, of(f"{BLOCK}.1.", model, True)),
        "layer_2_no_decay": (0.0, of(f"{BLOCK}.1.", model, False)),
        "layer_3_decay": (0.3, of(f"{BLOCK}.2.", model, True)),
        "layer_3_no_decay": (0.0, of(f"{BLOCK}.2.", model, False)),
        "layer_4_decay": (0.3, {f"{TOWER}.visual_projection.weight"}),
        "layer_4_no_decay": (0.0, {f"{TOWER}.vision_model.post_layernorm.{kind}" for kind in ("weight", "bias")}),
        "parts_no_decay": (0.0, head | LOSS),
    }
    peaks = {"layer_2": 0.005, "layer_3": 0.01, "layer_4": 0.02, "parts": 0.02}
    check_rates(watch, {name: peaks[name.replace("_no", "").removesuffix("_decay")] for name in watch.groups})


@pytest.mark.parametrize("stage", [HeadStage, LoRAStage, VisualPromptStage, LadderStage, PromptStage])
def test_other_stages_learn_at_their_own_rate_and_decay(tiny, stage):
    pytest.importorskip("peft") if stage is LoRAStage else None
    stage = stage(**SHORT, **OTHER)
    model, watch = watched(tiny, stage, head=QueryHead(2, 16))
    parts = ("model.head.", "objective.")
    added = {"lora": "lora_", "visual_prompt": "visual_prompts", "ladder": "local_adapter"}.get(stage.name)
    learning = {
        "parts": {n for n, _ in model.named_parameters() if n.startswith(parts)},
        stage.name: {n for n, _ in model.named_parameters() if added and added in n},
    }
    if stage.name == "prompt":
        learning = {"prompt": {"model.prompt.context"}}
    ndim = {name: p.ndim for name, p in model.named_parameters()}
    expected = {}
    for name, names in learning.items():
        expected[f"{name}_decay"] = (0.3, {n for n in names if ndim[n] > 1})
        expected[f"{name}_no_decay"] = (0.0, {n for n in names if ndim[n] <= 1})
    assert type(watch.optimizer) is torch.optim.AdamW
    assert watch.groups == {name: group for name, group in expected.items() if group[1]}
    assert len(watch.groups) > 1 or stage.name == "prompt"
    check_rates(watch, dict.fromkeys(watch.groups, 0.02))


def check_rates(watch, peaks):
    """Warm-up over the four batches of an epoch, then half a cosine over the other four, to `min_lr`."""
    assert len(watch.rates) == 9
    for step, rates in enumerate(watch.rates):
        cosine = 0.001 + (0.02 - 0.001) * (1 + math.cos(math.pi * (step - 4) / 4)) / 2
        share = step / 4 if step < 4 else cosine / 0.02
        assert rates == pytest.approx({name: share * peak for name, peak in peaks.items()}, rel=1e-9), step


@pytest.mark.parametrize(
    ("stage", "lr", "min_lr", "warmup_epochs", "weight_decay"),
    [
        (VisionStage, 1e-3, 1e-6, 2, 0.05),
        (HeadStage, 1e-3, 1e-6, 2, 0.05),
        (PromptStage, 1e-3, 1e-8, 0, 0.05),
        (LoRAStage, 1e-3, 1e-6, 2, 0.05),
        (VisualPromptStage, 1e-3, 1e-6, 2, 0.0),
        (LadderStage, 1e-3, 1e-6, 2, 0.05),
    ],
)
def test_default_rates(stage, lr, min_lr, warmup_epochs, weight_decay):
    made = stage()
    assert (made.lr, made.min_lr, made.warmup_epochs, made.weight_decay) == (lr, min_lr, warmup_epochs, weight_decay)


def test_the_warm_up_is_that_of_the_stage_where_fewer_epochs_are_run(tiny):
    """Two of the stage's eight epochs: one of them warms up, and the half-cosine ends with the training."""
    _, watch = watched(tiny, VisionStage(epochs=8, warmup_epochs=1, **OTHER, layer_decay=1.0))
    check_rates(watch, dict.fromkeys(watch.groups, 0.02))


def test_the_warm_up_counts_steps_not_batches(tiny):
    """With two batches a step, an epoch of four batches has two steps."""
    _, watch = watched(tiny, PromptStage(**SHORT, lr=0.02, min_lr=0.0), accumulate=2)
    rates = [rate for rates in watch.rates for rate in rates.values()]
    assert rates == pytest.approx([0, 0, 0.01, 0.01, 0.02, 0.02, 0.01, 0.01, 0], abs=1e-12)
