"""What a training step costs beside arithmetic: waiting, operations, conversions, tokenising. Counted, not timed."""

from itertools import count

import pytest
import torch
from devices import DEVICE
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader
from transformers import CLIPConfig, CLIPModel
from waiting import Operations, Waiting

from ovml import LabelVocabulary, OVMultiLabelClassifier, PromptStage, UserError, VisionStage
from ovml.encoders import TextEncoder
from ovml.encoders.checkpoints import load_tokenizer
from ovml.encoders.held import hold_frozen
from ovml.heads import LocalHead, two_stream
from ovml.prompts import DeepPrompt
from ovml.training.callbacks import progress
from ovml.training.divergence import LossWatch

VOCABULARY = LabelVocabulary(("cat", "dog", "red car", "sky", "sun"), ("black cat", "sea"))
QUIET = {
    "logger": False,
    **dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
}
STAGES = {
    "vision": VisionStage(epochs=1, warmup_epochs=0, num_layers=2),
    "prompt": PromptStage(epochs=1),
    "few labels": PromptStage(epochs=1, labels_per_step=3),
}


def classifier(clip, stage, prompt=None, **options):
    torch.manual_seed(0)
    return OVMultiLabelClassifier(clip, VOCABULARY, prompt=prompt, stages=[stage], ks=[1], **options)


def rows(size=12, side=48):
    """Every third image has no seen label."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 2, (size, len(VOCABULARY)), generator=generator).to(torch.int8)
    labels[:, 0], labels[:, 1] = 1, 0
    labels[::3, :5] = 0
    pixels = torch.randn(size, 3, side, side, generator=generator)
    return [{"pixel_values": x, "labels": y, "image_id": "x"} for x, y in zip(pixels, labels, strict=True)]


def fit(model, callback=None, batch_size=4, **options):
    options = {"accelerator": "cpu", "max_epochs": 1, "limit_val_batches": 0, **QUIET, **options}
    trainer = Trainer(callbacks=[callback] if callback else [], **options)
    images = rows(side=model.model.image_encoder.image_size)
    trainer.fit(model, DataLoader(images, batch_size), DataLoader(images, batch_size))
    return trainer


class Between(Callback):
    """Enters a mode before the second training step and leaves it after the last."""

    def __init__(self, mode):
        self.mode = mode

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.mode.__enter__()

    def on_train_epoch_end(self, trainer, pl_module):
        self.mode.__exit__(None, None, None)


# ---------------------------------------------------------------------- waiting


class SecondAndThird(Callback):
    """Counts from the end of the first step to the end of the third."""

    def __init__(self, waiting):
        self.waiting = waiting
        self.found = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.waiting.found.clear()
        self.found = dict(self.waiting.found)


@pytest.mark.parametrize("stage", STAGES)
def test_no_step_waits_for_the_device(tiny, stage, monkeypatch):
    """Also where images without a seen label are left out, and where a step ranks a part of the labels."""
    monkeypatch.setattr("ovml.losses.ranking._most_present", lambda present: present.shape[1])  # as on a GPU
    model = classifier(tiny, STAGES[stage])
    model._watch.every = 50
    with Waiting() as waiting:
        steps = SecondAndThird(waiting)
        trainer = fit(model, steps, strategy=SingleDeviceStrategy(device=DEVICE))
    assert trainer.global_step == 3
    assert steps.found == {}


def test_the_counter_sees_what_waits():
    with Waiting() as waiting:
        there = torch.ones(3).to(DEVICE)
        waiting.found.clear()
        for wait in (
            lambda: there.sum().item(),
            lambda: bool(there.sum()),
            lambda: there[there > 0],
            lambda: there.nonzero(),
            lambda: there.cpu(),
            lambda: torch.tensor([1.0], device=DEVICE),
            lambda: torch.ones(3).to(DEVICE),
        ):
            before = waiting.found.total()
            wait()
            assert waiting.found.total() == before + 1
        there[torch.tensor([0]).to(DEVICE, non_blocking=True)] + torch.ones(3).sum().item()
        assert waiting.found.total() == before + 1


def test_losses_are_looked_at_together_and_the_first_bad_step_is_named():
    watch = LossWatch()
    watch.every = 3
    for step in range(5):
        watch.add(torch.tensor(1.0 if step != 4 else float("inf")), "vision", step)
    with pytest.raises(UserError, match="^stage 'vision', step 4: the loss is inf, the training has diverged"):
        watch.look()
    watch.look()  # forgotten
    watch.add(torch.tensor(float("nan")), "vision", 5)
    watch.add(torch.tensor(1.0), "vision", 6)
    with pytest.raises(UserError, match="step 5: the loss is nan"):
        watch.add(torch.tensor(1.0), "vision", 7)


@pytest.mark.parametrize("stage", ["vision", "prompt"])
def test_a_training_that_diverges_ends_before_it_is_validated(tiny, stage):
    model = classifier(tiny, STAGES[stage])
    model._watch.every = 50
    with torch.no_grad():
        model.model.image_encoder.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=f"^stage '{STAGES[stage].name}', step 0: the loss is nan"):
        fit(model, limit_val_batches=1, num_sanity_val_steps=0)


def test_the_bar_asks_for_the_loss_twice_a_second(monkeypatch):
    now, asked = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[-1])

    class Trainer:
        training, loggers, progress_bar_metrics = True, (), {"val": 1.0}

        @property
        def callback_metrics(self):
            asked.append(now[-1])
            return {"train/loss": torch.tensor(0.5)}

    bar, shown = progress.SlowProgressBar(), []
    for moment in (100.0, 100.1, 100.4, 100.6, 100.7):
        now.append(moment)
        shown.append(bar.get_metrics(Trainer(), None))
    assert sorted(set(asked)) == [100.0, 100.6]
    assert shown == [{"train/loss": 0.5, "val": 1.0}] * 5


# ---------------------------------------------------------------------- operations


def test_a_step_over_thousands_of_labels_is_few_operations():
    """7,186 labels through 12 blocks, as a GPU takes them: their number was 31,558 with 256 texts at once."""
    tower = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 12}
    tokenizer = load_tokenizer("ovml-demo")
    text = {**tower, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {**tower, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))
    words = ("red", "blue", "small", "round", "dark")
    names = [f"{words[i % 5]} {words[i // 5 % 5]} " * (1 + i % 2) + f"{i}" for i in range(7186)]
    model = OVMultiLabelClassifier(clip, names, head=LocalHead(1), stages=[PromptStage()], tokenizer=tokenizer)
    model.model.prompt.text_encoder.batch_size = 4096
    labels = torch.zeros(2, len(names), dtype=torch.int8)
    labels[:, 3] = 1
    batch = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": labels}
    model.training_step(batch, 0).backward()
    with Operations() as operations:
        model.training_step(batch, 0).backward()
    assert operations.names["aten::tril"] == 2  # one mask for each of two batches
    assert operations.names.total() < 3500


def test_blocks_of_the_text_tower_are_not_searched_for_what_learns(tiny, monkeypatch):
    model = classifier(tiny, STAGES["prompt"])
    layers = model.model.prompt.text_encoder.text_model.encoder.layers
    batch = torch.utils.data.default_collate(rows()[1:3])
    model.training_step(batch, 0)
    for layer in layers:
        monkeypatch.setattr(layer, "parameters", lambda: pytest.fail("searched"))
    model.training_step(batch, 0)


# ---------------------------------------------------------------------- conversions


def frozen_weights(model):
    """Weights of the linear layers in all blocks that are frozen."""
    blocks = [block for block in model._blocks if not any(p.requires_grad for p in block.parameters())]
    return [p for block in blocks for m in block.modules() if isinstance(m, torch.nn.Linear) for p in m.parameters()]


@pytest.mark.parametrize("stage", ["vision", "prompt"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_weights_are_converted_once_and_give_the_same_bits(tiny, stage, checkpointing, monkeypatch):
    learned, counted = {}, {}
    for is_held in (True, False):
        with monkeypatch.context() as patch:
            if not is_held:
                patch.setattr("ovml.classifier.hold_frozen", lambda *_: None)
            model = classifier(tiny, STAGES[stage], gradient_checkpointing=checkpointing)
            operations = Operations(frozen_weights(model))
            fit(model, Between(operations), precision="bf16-mixed")
        counted[is_held] = operations.converted
        learned[is_held] = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    assert counted[True] == 0
    assert counted[False] >= 2 * 12  # in two steps, of one block at least
    assert all(torch.equal(learned[True][name], learned[False][name]) for name in learned[True])


def test_held_weights_serve_only_while_they_are_the_block_s(tiny):
    model = classifier(tiny, STAGES["prompt"]).model
    tower, pixels = model.image_encoder, torch.randn(2, 3, 48, 48)
    layers = tower.vision_model.encoder.layers
    with torch.no_grad():
        exact = tower(pixels).patch_embeds
        with torch.autocast("cpu", torch.bfloat16):
            rough = tower(pixels).patch_embeds
        before = set(model.state_dict())
        hold_frozen(layers, torch.bfloat16)
        assert set(model.state_dict()) == before
        assert torch.equal(tower(pixels).patch_embeds, exact)  # float32 is float32
        with torch.autocast("cpu", torch.bfloat16):
            with Operations(p for layer in layers for p in layer.parameters()) as operations:
                assert torch.equal(tower(pixels).patch_embeds, rough)
            assert operations.converted == 0
            layers[0].mlp.fc1.weight.mul_(2)  # as a state that is loaded
            changed = tower(pixels).patch_embeds
            hold_frozen(layers, None)
            assert torch.equal(tower(pixels).patch_embeds, changed)
            assert not torch.equal(changed, rough)
            layers[1].mlp.fc1.weight.requires_grad_(True)
            hold_frozen(layers, torch.bfloat16)
            assert ["_held" in vars(layer) for layer in layers] == [True, False, True]


# ---------------------------------------------------------------------- tokenising


@pytest.mark.parametrize(
    ("stage", "prompt"),
    [("prompt", None), ("few labels", None), ("prompt", DeepPrompt(num_layers=1)), ("vision", None)],
)
def test_no_step_tokenises(tiny, stage, prompt, monkeypatch):
    calls, steps = count(), []
    tokenize = TextEncoder.tokenize
    monkeypatch.setattr(TextEncoder, "tokenize", lambda *args: (next(calls), tokenize(*args))[1])

    class Count(Callback):
        def on_train_batch_end(self, *_):
            steps.append(next(calls))

    fit(classifier(tiny, STAGES[stage], prompt), Count())
    assert steps == [steps[0], steps[0] + 1, steps[0] + 2]  # each look at the counter counts itself


# ---------------------------------------------------------------------- evaluation


def test_an_evaluation_scores_each_label_once(tiny, monkeypatch):
    """By itself as each protocol asks: to 1e-6, as products of other shapes may add up in another order."""
    scored = []
    local = two_stream.local_scores

    def spy(features, label_embeds, *rest):
        scored.append(len(label_embeds))
        return local(features, label_embeds, *rest)

    monkeypatch.setattr(two_stream, "local_scores", spy)
    model = classifier(tiny, STAGES["prompt"]).eval()
    batch = torch.utils.data.default_collate(rows()[:4])
    with torch.no_grad():
        model.validation_step(batch, 0)
        assert scored == [len(VOCABULARY)]
        features, embeds = model.model.encode_images(batch["pixel_values"]), model.model.embed_labels()
        score = model.model.scorer(features, embeds)
        for columns in (slice(None), slice(0, 5), [6, 5], slice(5, None)):
            expected = model.model.score(features, embeds[columns])
            torch.testing.assert_close(score(columns), expected, atol=1e-6, rtol=0)


def test_a_head_that_changes_forward_alone_is_asked_for_each_protocol(tiny):
    class Doubled(two_stream.TwoStreamHead):
        def forward(self, features, label_embeds):
            return 2 * super().forward(features, label_embeds)

    model = classifier(tiny, STAGES["prompt"], head=Doubled(2)).eval().model
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        features, embeds = model.encode_images(pixels), model.embed_labels()
        found = model.scorer(features, embeds)(slice(0, 3))
        torch.testing.assert_close(found, model.score(features, embeds[:3]), atol=1e-6, rtol=0)
    assert not model.head.is_divided
