"""RAM's ladder: the patches' own path beside a frozen tower."""

import copy
import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from commands import SMALL, ovml_here
from encoders.test_siglip import letters, sizes
from safetensors import safe_open
from stopper import ControlC, ended_by
from transformers import CLIPModel, SiglipModel
from tuned import PIXELS, VOCABULARY, scores, trained

from ovml import OVMultiLabelClassifier, PromptStage, UserError, VisionStage
from ovml.encoders import ImageEncoder
from ovml.encoders.adapters.ladder import LocalAdapter
from ovml.encoders.checkpoints import load_clip
from ovml.heads import OptimalTransportHead
from ovml.inference.export import export_model
from ovml.losses import MultiMatchingLoss
from ovml.training import LadderStage, LoRAStage, VisualPromptStage
from ovml.utils.parts import describe

SHORT = {"epochs": 1, "warmup_epochs": 0, "hidden_dim": 6}
PLAIN = LadderStage(**SHORT, num_layers=2, num_adapters=1)
WHOLE = LadderStage(**SHORT, num_layers=3, num_adapters=2)
TOKENS = LadderStage(**SHORT, num_layers=3, num_adapters=2, num_tokens=4)
STAGES = [PLAIN, WHOLE, TOKENS]


def make(clip, stage, **parts):
    torch.manual_seed(0)
    parts = {"head": OptimalTransportHead(local_temperature=0.1), "loss": MultiMatchingLoss(), **parts}
    return OVMultiLabelClassifier(clip, VOCABULARY, stages=[copy.deepcopy(stage), PromptStage(1)], **parts).eval()


def features(encoder):
    with torch.no_grad():
        return encoder(PIXELS)


def by_hand(x, attention, keys_from, tokens):
    """Attention of all tokens of `x [T, W]` to its first ones, one query and one head at a time."""
    width = x.shape[1] // attention.num_heads
    maps = {name: getattr(attention, f"{name}_proj") for name in ("q", "k", "v")}
    query, key, value = maps[keys_from[0]](x), maps[keys_from[1]](x)[:tokens], maps["v"](x)[:tokens]
    rows = []
    for i in range(len(x)):
        parts = []
        for head in range(attention.num_heads):
            at = slice(head * width, (head + 1) * width)
            weights = torch.tensor([math.exp(query[i, at] @ key[j, at] / math.sqrt(width)) for j in range(tokens)])
            parts.append(sum(w * value[j, at] for j, w in enumerate(weights / weights.sum())))
        rows.append(torch.cat(parts))
    return attention.out_proj(torch.stack(rows))


def adapter_by_hand(adapter, patches):
    """The adapter's formula patch by patch, for `[P, W]`; the edge of the grid sees zeros."""
    grid, reach = adapter.grid, adapter.maps.kernel_size[0] // 2

    def convolved(weight, values):
        out = []
        for row in range(grid):
            for column in range(grid):
                total = torch.zeros(weight.shape[0])
                for down in range(-reach, reach + 1):
                    for right in range(-reach, reach + 1):
                        if 0 <= row + down < grid and 0 <= column + right < grid:
                            value = values[(row + down) * grid + column + right]
                            total = total + weight[:, :, down + reach, right + reach] @ value
                out.append(total)
        return torch.stack(out)

    def normed(x, norm):
        spread = ((x - x.mean()) ** 2).mean()
        return (x - x.mean()) / (spread + norm.eps).sqrt() * norm.weight + norm.bias

    def gelu(x):
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    close = [gelu(normed(adapter.close.weight @ x, adapter.close_norm)) for x in patches]
    wide = [gelu(normed(x, adapter.wide_norm)) for x in convolved(adapter.wide.weight, patches)]
    both = [torch.cat(pair) for pair in zip(close, wide, strict=True)]
    maps = convolved(adapter.maps.weight, [torch.stack([x.mean(), x.max()]) for x in both])
    mixed = [c * m[0].sigmoid() + d * m[1].sigmoid() for c, d, m in zip(close, wide, maps, strict=True)]
    return torch.stack([adapter.out.weight @ x for x in mixed])


def naive(clip, stage, model):
    """Global and patch embeddings of one picture as the docstring of `LadderStage` says them."""
    tower = clip.vision_model
    blocks = tower.encoder.layers
    x = tower.pre_layrnorm(tower.embeddings(PIXELS[:1]))[0]
    for i, block in enumerate(blocks):
        ours = model.model.image_encoder.vision_model.encoder.layers[i]
        if i == len(blocks) - stage.num_layers:
            z = x[1:]
        if i >= len(blocks) - stage.num_layers:
            z = z + by_hand(block.layer_norm1(x), block.self_attn, "vv", 17)[1:]
        if i >= len(blocks) - stage.num_adapters and stage.num_tokens:
            x = torch.cat([x, ours.adapt_tokens])
        x = x + by_hand(block.layer_norm1(x), block.self_attn, "qk", len(x))
        x = (x + block.mlp(block.layer_norm2(x)))[:17]
        if i >= len(blocks) - stage.num_adapters:
            z = z + adapter_by_hand(ours.local_adapter, x[1:])
    return [clip.visual_projection(tower.post_layernorm(part)) for part in (x[0], z)]


@pytest.mark.parametrize("stage", STAGES)
def test_it_is_the_formula(tiny, stage):
    model = trained(make(tiny, stage))
    with torch.no_grad():
        expected = naive(load_clip(tiny), stage, model)
    got = features(model.model.image_encoder)
    torch.testing.assert_close(got.global_embeds[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.patch_embeds[0], expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_the_adapter_is_its_formula(kernel_size):
    torch.manual_seed(0)
    adapter = LocalAdapter(5, 4, grid=3, kernel_size=kernel_size)
    patches = torch.randn(2, 9, 5)
    assert not adapter(patches).any()
    for parameter in adapter.parameters():
        parameter.data += torch.randn_like(parameter)
    with torch.no_grad():
        expected = torch.stack([adapter_by_hand(adapter, picture) for picture in patches])
        torch.testing.assert_close(adapter(patches), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_the_global_embedding_is_the_originals_bit_for_bit(tiny, stage):
    original, model = ImageEncoder(load_clip(tiny)), trained(make(tiny, stage))
    whole, tail = features(model.model.image_encoder), model.model.encode_images(PIXELS)
    assert torch.equal(whole.global_embeds, features(original).global_embeds) == (stage.num_tokens == 0)
    assert torch.equal(tail.global_embeds, whole.global_embeds)
    assert torch.equal(tail.patch_embeds, whole.patch_embeds)
    assert not torch.allclose(whole.patch_embeds, features(original).patch_embeds, atol=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_the_teacher_is_the_untrained_path(tiny, stage):
    """Global embeddings are the original's, and patches what the ladder gives before it has learned."""
    model, original = make(tiny, stage), ImageEncoder(load_clip(tiny))
    before = features(model.model.image_encoder).patch_embeds
    trained(model)
    zero_shot = features(model.zero_shot().model.image_encoder)
    with torch.no_grad():
        teacher = model.teacher(model.model.image_encoder.trunk(PIXELS, len(model.teacher.layers)))
    for got in (zero_shot, teacher):
        assert torch.equal(got.global_embeds, features(original).global_embeds)
        if not stage.num_tokens:
            assert torch.equal(got.patch_embeds, before)
    assert not torch.allclose(features(model.model.image_encoder).patch_embeds, before, atol=1e-3)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_ladder_and_the_head_learn(tiny, stage, checkpointing):
    model = make(tiny, stage, gradient_checkpointing=checkpointing).train()
    model._trainer = type("One", (), {"world_size": 1, "global_step": 0, "progress_bar_callback": None})()
    model.log = lambda *_, **__: None
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    added = {name for name in learning if ".local_adapter." in name or name.endswith(".adapt_tokens")}
    assert learning - added == {"model.head.log_temperature", "model.head.log_local_temperature"}
    assert len(added) == stage.num_adapters * (8 + bool(stage.num_tokens))
    data = {"pixel_values": PIXELS, "labels": torch.tensor([[1, 0, 0], [0, 1, 1]], dtype=torch.int8)}
    trained(model).training_step(data, 0).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == learning
    model.start_stage(model.stages[1])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"model.prompt.context"}


def test_the_gradient_of_the_tokens_by_finite_differences(tiny):
    encoder = trained(make(tiny, TOKENS)).double().model.image_encoder
    weights = [torch.randn_like(part) for part in encoder(PIXELS.double())]

    def loss():
        return sum((part * weight).sum() for part, weight in zip(encoder(PIXELS.double()), weights, strict=True))

    tokens = [p for name, p in encoder.named_parameters() if name.endswith(".adapt_tokens")]
    for parameter, grad in zip(tokens, torch.autograd.grad(loss(), tokens), strict=True):
        for place in ((0, 0), (3, 7)):
            with torch.no_grad():
                parameter[place] += 1e-6
                above = float(loss())
                parameter[place] -= 2e-6
                slope = (above - float(loss())) / 2e-6
                parameter[place] += 1e-6
            assert float(grad[place]) == pytest.approx(slope, rel=1e-5, abs=1e-7)
    assert len(tokens) == TOKENS.num_adapters


def test_no_graph_is_kept_of_the_towers_own_path(tiny):
    """Frozen weights are never needed for a gradient: their blocks may be changed before it is computed."""
    model = trained(make(tiny, WHOLE)).train()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        model.model.image_encoder(PIXELS).patch_embeds.sum()
    own = {p.data_ptr() for n, p in model.model.image_encoder.named_parameters() if ".base_layer." in n}
    assert kept
    assert not own & set(kept)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_what_was_added(tiny, stage, tmp_path):
    model = trained(make(tiny, stage))
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    vision = {name for name in checkpoint["state_dict"] if name.startswith("model.image_encoder")}
    assert vision
    assert all(".local_adapter." in name or name.endswith(".adapt_tokens") for name in vision)
    torch.save(checkpoint, tmp_path / "x.ckpt")
    again = make(tiny, stage)
    again.load_learned(tmp_path / "x.ckpt")
    assert torch.equal(scores(again), scores(model))
    with pytest.raises(UserError, match="made with head|which no part takes|lacks"):
        OVMultiLabelClassifier(tiny, VOCABULARY).load_learned(tmp_path / "x.ckpt")


@pytest.mark.parametrize("stage", STAGES)
def test_saved_it_scores_the_same_to_the_last_bit(tiny, stage, tmp_path):
    model = trained(make(tiny, stage))
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    assert torch.equal(scores(again), scores(model))
    assert list(map(describe, again.stages)) == list(map(describe, model.stages))
    used = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved", stages=[])
    assert torch.equal(scores(used), scores(model))
    assert not any(p.requires_grad for p in used.model.image_encoder.parameters())
    used.save_pretrained(tmp_path / "twice")
    twice = OVMultiLabelClassifier.from_pretrained(tmp_path / "twice")
    assert torch.equal(scores(twice), scores(model))
    assert list(map(describe, twice.model.adapters)) == list(map(describe, model.model.adapters))
    assert twice.stages == []
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        names = {name for name in file.keys() if not name.startswith(("prompt.", "head."))}  # noqa: SIM118
    added = {name for name in names if ".local_adapter." in name or name.endswith(".adapt_tokens")}
    assert names - added == set(load_clip(tiny).state_dict())
    plain = CLIPModel.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(features(ImageEncoder(plain)).patch_embeds, features(ImageEncoder(load_clip(tiny))).patch_embeds)
    more = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved", stages=[PromptStage()])
    assert torch.equal(scores(more), scores(model))


@pytest.mark.parametrize("stage", STAGES)
def test_half_precision(tiny, stage, tmp_path):
    model = trained(make(tiny, stage)).to(torch.bfloat16)
    assert scores(model).isfinite().all()
    assert model.model.encode_images(PIXELS.bfloat16()).patch_embeds.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(scores(again.to(torch.bfloat16)), scores(model))


def test_mixed_precision(tiny):
    original, model = ImageEncoder(load_clip(tiny)), trained(make(tiny, WHOLE))
    with torch.autocast("cpu", torch.bfloat16):
        mixed, same = features(model.model.image_encoder), features(original)
    assert torch.equal(mixed.global_embeds, same.global_embeds)
    exact = features(model.model.image_encoder).patch_embeds
    torch.testing.assert_close(mixed.patch_embeds.float(), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("stage", STAGES)
def test_compiled_blocks_are_the_same(tiny, stage, monkeypatch):
    model = trained(make(tiny, stage))
    plain = scores(model)
    monkeypatch.setattr("ovml.encoders.execution._compiled", cache(lambda block: torch.compile(block, backend="eager")))
    compiled = make(tiny, stage, compile=True)
    compiled.load_state_dict(model.state_dict())
    torch.testing.assert_close(scores(compiled), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (lambda: [LadderStage(num_adapters=0)], "num_adapters must be from 1 to num_layers"),
        (lambda: [LadderStage(num_adapters=4)], "num_adapters must be from 1 to num_layers"),
        (lambda: [LadderStage(num_tokens=-1)], "num_tokens not negative"),
        (lambda: [LadderStage(hidden_dim=0)], "hidden_dim must be at least 1"),
        (lambda: [LadderStage(kernel_size=2)], "kernel_size odd; got hidden_dim=None, kernel_size=2"),
        (lambda: [LadderStage(num_layers=4)], "from 0 to 3, the tower's blocks; got 4"),
        (lambda: [LadderStage(), VisionStage()], "'ladder' and 'vision' change the same tower"),
        (lambda: [LoRAStage(), LadderStage()], "'lora' and 'ladder' change the same tower"),
        (lambda: [VisualPromptStage(), LadderStage()], "'visual_prompt' and 'ladder' change the same tower"),
    ],
)
def test_wrong_arguments_end_in_one_line(tiny, stages, message):
    with pytest.raises(UserError, match=message) as info:
        OVMultiLabelClassifier(tiny, VOCABULARY, stages=stages())
    assert "\n" not in str(info.value)


def test_siglip_has_no_such_path():
    with pytest.raises(UserError, match="this tower is siglip; use LoRAStage") as info:
        make(SiglipModel(sizes()).eval(), PLAIN, tokenizer=letters())
    assert "\n" not in str(info.value)


def learned(root):
    return torch.load(root / "version_0" / "ladder" / "last.ckpt", weights_only=True)["state_dict"]


def test_fit_by_the_command_resumes_to_the_same_weights(config, tmp_path):
    content = yaml.safe_load(Path(config).read_text())
    init_args = {**SHORT, "epochs": 2, "num_adapters": 2, "num_tokens": 2}
    content["model"] = {
        "clip": content["model"]["clip"],
        "stages": [{"class_path": "ovml.training.LadderStage", "init_args": init_args}],
        "head": {"class_path": "ovml.heads.OptimalTransportHead", "init_args": {"local_temperature": 0.002}},
        "loss": "ovml.losses.MultiMatchingLoss",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    fit = ["fit", "--config", str(tmp_path / "run.yaml"), *SMALL, "--trainer.limit_train_batches", "2"]
    assert ovml_here(*fit, "--trainer.default_root_dir", str(tmp_path / "whole")) == 0
    cut = [*fit, "--trainer.default_root_dir", str(tmp_path / "cut")]
    assert ovml_here(*cut, *ended_by(ControlC, "ladder", 1)) == 130
    assert ovml_here(*cut, "--ckpt_path", "last") == 0
    whole, resumed = learned(tmp_path / "whole"), learned(tmp_path / "cut")
    assert all(value.any() for key, value in whole.items() if key.endswith("local_adapter.out.weight"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    run = tmp_path / "whole" / "version_0"
    assert set(json.loads((run / "results.json").read_text())) == {"zero-shot", "ladder"}
    model = OVMultiLabelClassifier.from_pretrained(run)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(scores(OVMultiLabelClassifier.from_pretrained(tmp_path / "saved", stages=[])), scores(model))


def test_it_is_exported(tiny, tmp_path):
    assert export_model(trained(make(tiny, TOKENS)).model, tmp_path / "model.pt2").difference < 1e-4
