"""Cheaper ways to the same numbers: attention kernels, precision, accumulation, checkpointing, compilation."""

import json
import shutil
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ovml import LabelVocabulary, OpenVocabularyModel, OVMultiLabelClassifier, PromptStage, UserError, VisionStage
from ovml.encoders import ImageEncoder, TextEncoder
from ovml.encoders import execution as blocks
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.heads import GlobalHead, LocalHead
from ovml.training.precision import multiplies_bfloat16, warn_of_slow_precision

VOCABULARY = LabelVocabulary(("cat", "dog", "red car", "sky"), ("black cat", "sea", "sun", "tree", "house"))
STAGES = ["vision", "prompt"]


def classifier(clip, vision_layers=2, head=None, **flags):
    torch.manual_seed(0)
    stages = [VisionStage(epochs=1, warmup_epochs=0, num_layers=vision_layers), PromptStage(epochs=1)]
    return OVMultiLabelClassifier(clip, VOCABULARY, head=head or LocalHead(top_k=2), stages=stages, ks=[1], **flags)


def pictures(size=8, side=48):
    """Rows with at least one present and one absent seen label."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 2, (size, len(VOCABULARY)), generator=generator).to(torch.int8)
    labels[:, 0], labels[:, 1] = 1, 0
    pixels = F.interpolate(torch.randn(size, 3, 6, 6, generator=generator), side, mode="bilinear")
    return [{"pixel_values": x, "labels": y, "image_id": "x"} for x, y in zip(pixels, labels, strict=True)]


class Gradients(Callback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})


def fit(model, stage="vision", size=8, batch_size=8, **flags):
    """Train a stage for an epoch; returns its trainer and the gradients of its steps."""
    model.start_stage(next(s for s in model.stages if s.name == stage))
    gradients = Gradients()
    trainer = Trainer(
        **{"accelerator": "cpu", "max_epochs": 1, "logger": False, "callbacks": [gradients], **flags},
        **dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    rows = pictures(size, model.model.image_encoder.image_size)
    trainer.fit(model, DataLoader(rows, batch_size), DataLoader(rows, batch_size))
    return trainer, gradients.steps


def assert_close(ours, theirs, atol, skip=()):
    """To `atol` and 1e-5 of a number's size."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        if not name.endswith(skip):
            torch.testing.assert_close(
                ours[name], theirs[name], atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def learned(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------------- attention


def test_attention_runs_in_the_fused_kernel_and_masks_no_more_than_it_must(tiny, monkeypatch):
    clip, calls = load_clip(tiny), []
    for config in (clip.config, clip.vision_model.config, clip.text_model.config):
        assert config._attn_implementation == "sdpa"
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, *, is_causal=False, **kwargs):
        calls.append((attn_mask is None, bool(is_causal)))
        return attention(query, key, value, attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    ImageEncoder(clip)(torch.randn(2, 3, 48, 48))
    assert calls == [(True, False)] * 3
    calls.clear()
    encoder = TextEncoder(clip, load_tokenizer(tiny))
    embeds = torch.randn(3, 5, clip.config.text_config.hidden_size)
    encoder.encode(embeds, torch.tensor([5, 4, 3]))
    assert calls == [(True, True)] * 2
    calls.clear()
    embeds[:, :2] = embeds[0, :2]
    encoder.encode(embeds, torch.tensor([5, 4, 3]), num_shared=2)
    assert calls == [(True, True), (False, False)] * 2  # the shared tokens; then each text's own, which see those too


def test_attention_written_out_gives_the_same(tiny):
    """1e-5: the kernel sums in another order."""
    clip, texts, pixels = load_clip(tiny), ["cat", "horse"], torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        fused = TextEncoder(clip, load_tokenizer(tiny))(texts), ImageEncoder(clip)(pixels).patch_embeds
        clip.set_attn_implementation("eager")
        plain = TextEncoder(clip, load_tokenizer(tiny))(texts), ImageEncoder(clip)(pixels).patch_embeds
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- precision


def relative_error(ours, theirs):
    """Length of the difference of all gradients over the length of all gradients."""
    difference = torch.stack([(ours[n].float() - theirs[n]).square().sum() for n in theirs]).sum()
    return float((difference / torch.stack([g.square().sum() for g in theirs.values()]).sum()).sqrt())


PRECISIONS = [
    # What enters a matrix product is rounded to 8 bits (2**-9, 0.2 %); its sums run in float32.
    pytest.param("bf16-mixed", "cpu", 0.03, id="bf16-mixed"),
    # To 11 bits.
    pytest.param(
        "16-mixed",
        "gpu",
        0.005,
        id="16-mixed",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 with a scaler needs a GPU"),
    ),
]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("precision", "accelerator", "tolerance"), PRECISIONS)
def test_mixed_precision_gives_the_gradient_up_to_rounding(stage, precision, accelerator, tolerance):
    """On trained weights: random ones give all labels nearly the same embedding, and rounding hides the difference."""
    results = {}
    for name in ("32-true", precision):
        flags = {"accelerator": accelerator, "precision": name, "devices": 1}
        # Of patches that score alike rounding may choose another one: the global stream alone chooses nothing.
        trainer, (gradients,) = fit(classifier("ovml-demo", head=GlobalHead()), stage, **flags)
        results[name] = gradients, {k: float(v) for k, v in trainer.callback_metrics.items()}
    (exact, numbers), (rough, rough_numbers) = results.values()
    assert all(g.dtype == torch.float32 for g in rough.values())
    assert 0 < relative_error(rough, exact) < tolerance
    assert rough_numbers["train/loss"] == pytest.approx(numbers["train/loss"], abs=tolerance / 10)


@pytest.fixture
def processor(monkeypatch):
    """Makes a processor with or without instructions for bfloat16 of this one."""
    warn_of_slow_precision.cache_clear()
    yield lambda able: monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: able)
    warn_of_slow_precision.cache_clear()


@pytest.mark.parametrize(
    ("able", "flag", "warnings"),
    [(False, "bf16-mixed", 1), (False, "16-mixed", 1), (False, "32-true", 0), (True, "bf16-mixed", 0)],
)
def test_half_precision_that_is_slow_here_is_said_once(tiny, processor, caplog, able, flag, warnings):
    processor(able)
    model = classifier(tiny)
    for stage in STAGES:
        fit(model, stage, size=2, precision=flag)
    said = [record.getMessage() for record in caplog.records if record.name == "ovml.training.precision"]
    assert len(said) == warnings
    assert all("trainer.precision" in text and "32-true" in text for text in said)


def test_bfloat16_is_told_of_devices(processor):
    for able in (True, False):
        processor(able)
        assert multiplies_bfloat16("cpu") is multiplies_bfloat16(torch.device("cpu")) is able
    assert multiplies_bfloat16("mps")  # its own affair: torch does not multiply number by number there


def test_scores_and_label_embeddings_stay_in_float32(tiny):
    model, pixels = classifier(tiny).eval(), torch.randn(4, 3, 48, 48)
    with torch.no_grad():
        exact, embeds = model(pixels), model.model.embed_labels()
        model.model._label_embeds.clear()
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(pixels)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, rough.bfloat16().float())
    assert torch.equal(model.model.embed_labels(), embeds)
    torch.testing.assert_close(rough, exact, atol=0.005, rtol=0)


# ---------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("stage", STAGES)
def test_two_half_batches_are_one_whole(tiny, stage):
    """Gradients to 1e-6. Weights to 1e-5, a hundredth of the rate: AdamW divides a gradient by its own size, and so
    makes as much of its last digits as of itself where it is near 0; of a key's bias it is nothing but last digits."""
    whole, halves = classifier(tiny), classifier(tiny)
    _, exact = fit(whole, stage, size=16, batch_size=8)
    _, ours = fit(halves, stage, size=16, batch_size=4, accumulate_grad_batches=2)
    assert len(exact) == len(ours) == 2
    assert_close(ours[0], exact[0], atol=1e-6)
    assert_close(learned(halves), learned(whole), atol=1e-5, skip=("k_proj.bias",))


# ---------------------------------------------------------------------- gradient checkpointing


@pytest.mark.parametrize("stage", STAGES)
def test_checkpointing_runs_blocks_twice_for_the_same_gradient(tiny, stage):
    """To 1e-6; the same operations run in the same order, so that mostly not a bit differs."""
    gradients, calls = {}, {}
    for flag in (False, True):
        model = classifier(tiny, gradient_checkpointing=flag)
        vision, text = model.model.image_encoder.vision_model, model.model.prompt.text_encoder.text_model
        calls[flag] = []
        for name, tower in (("image", vision), ("text", text)):
            for number, layer in enumerate(tower.encoder.layers):
                layer.mlp.register_forward_pre_hook(lambda *_, n=f"{name} {number}", f=flag: calls[f].append(n))
        _, (gradients[flag],) = fit(model, stage, limit_val_batches=0)
    assert_close(gradients[True], gradients[False], atol=1e-6)
    learning = {"vision": ["image 1", "image 2"], "prompt": ["text 0", "text 1"]}[stage]
    assert sorted(calls[False]) == ["image 0", "image 1", "image 2", "text 0", "text 1"]
    assert sorted(calls[True]) == sorted([*calls[False], *learning])


# ---------------------------------------------------------------------- attention by another name


@pytest.mark.parametrize("stage", STAGES)
def test_eager_attention_gives_the_same(tiny, stage):
    """Gradients and scores to 1e-5: the sums are taken in another order."""
    fused, eager = classifier(tiny), classifier(tiny, attn_implementation="eager")
    assert eager.model.image_encoder.vision_model.config._attn_implementation == "eager"
    _, exact = fit(fused, stage, limit_val_batches=0)
    _, ours = fit(eager, stage, limit_val_batches=0)
    for our_step, their_step in zip(ours, exact, strict=True):
        assert_close(our_step, their_step, atol=1e-5)
    assert eager.hparams == fused.hparams  # it concerns the machine, not the model


def test_an_attention_that_is_not_there_is_one_line(tiny):
    with pytest.raises(UserError, match="^model.attn_implementation: 'fastest' does not work here") as caught:
        classifier(tiny, attn_implementation="fastest")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- compilation


@pytest.fixture
def compiler():
    """Skips where torch cannot compile."""
    try:
        blocks.check_compiler(torch.device("cpu"))
    except UserError as error:
        pytest.skip(str(error))


def test_compiled_blocks_give_the_same(tiny, compiler):
    """Gradients and scores to 1e-5: fused loops sum in another order. Batches of 4, 4 and 3 pictures."""
    flags = {"vision_layers": 1}
    plain, compiled = classifier(tiny, **flags), classifier(tiny, **flags, compile=True)
    both = classifier(tiny, **flags, compile=True, gradient_checkpointing=True)
    for stage in STAGES:
        _, exact = fit(plain, stage, size=11, batch_size=4, limit_val_batches=0)
        for model in (compiled, both):
            _, ours = fit(model, stage, size=11, batch_size=4, limit_val_batches=0)
            assert len(ours) == len(exact) == 3
            for our_step, their_step in zip(ours, exact, strict=True):
                assert_close(our_step, their_step, atol=1e-5)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert compiled.hparams == plain.hparams
    pixels, names = torch.randn(5, 3, 48, 48), ["cat", "a much longer name", "horse"]
    with torch.no_grad():
        for ours, theirs in ((compiled, plain), (compiled.zero_shot(), plain.zero_shot())):
            torch.testing.assert_close(ours(pixels, names), theirs(pixels, names), atol=1e-5, rtol=0)


def test_few_forms_are_compiled_and_none_for_another_size_or_copy(tiny, monkeypatch):
    """torch gives a function up when it has compiled it 8 times. Traced only, so that it needs no compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    blocks._compiled.cache_clear()
    forms = torch._dynamo.utils.counters["stats"]
    model, before = classifier(tiny, compile=True), forms["unique_graphs"]
    for stage in STAGES:
        fit(model, stage, size=11, batch_size=4)
    first = forms["unique_graphs"]
    assert 0 < first - before <= 8 + 1  # 5 of image blocks, 2 of text blocks, and that of `check_compiler`
    copy = model.zero_shot()
    copy.start_stage(copy.stages[0])
    for size in (6, 9):
        fit(copy, "vision", size=7, batch_size=size)
        fit(model, "prompt", size=10, batch_size=size)
    assert forms["unique_graphs"] == first
    blocks._compiled.cache_clear()
    torch._dynamo.reset()


def test_a_missing_compiler_is_one_clear_error(tiny):
    """Before the first batch."""
    torch._dynamo.reset()
    blocks.check_compiler.cache_clear()
    no_compiler = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with torch._inductor.config.patch(no_compiler), pytest.raises(UserError, match="leave model.compile off"):
        fit(classifier(tiny, compile=True))
    blocks.check_compiler.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", ["name", "model"])
def test_the_type_of_a_checkpoint_does_not_decide(tiny, tmp_path, dtype, given):
    clip = load_clip(tiny).to(dtype)
    shutil.copytree(tiny, tmp_path / "half")
    clip.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    name = str(tmp_path / "half")
    made = {"name": (name,), "model": (clip,)}[given]
    model = OpenVocabularyModel(*made, labels=["cat", "dog"], tokenizer=load_tokenizer(tiny)).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    weights = dict(model.image_encoder.vision_model.state_dict())
    assert all(torch.equal(weights[key], value.float()) for key, value in clip.vision_model.state_dict().items())
    pixels = torch.randn(64, 3, model.image_processor.size, model.image_processor.size)
    with torch.no_grad():
        assert model(pixels).dtype == torch.float32
        assert model.to(torch.bfloat16)(pixels.bfloat16()).dtype == torch.float32
