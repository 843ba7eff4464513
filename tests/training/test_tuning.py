"""LoRA and visual prompts in the vision stage."""

import copy
import math
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from commands import SMALL
from encoders.test_siglip import letters, sizes
from safetensors import safe_open
from transformers import CLIPModel, SiglipModel
from tuned import PIXELS, VOCABULARY, scores, trained

from ovml import OVMultiLabelClassifier, PromptStage, UserError, VisionStage
from ovml.cli.main import main
from ovml.encoders import ImageEncoder
from ovml.encoders.adapters import plain_state
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.heads import CosineHead
from ovml.training import LoRAStage, VisualPromptStage
from ovml.utils.parts import describe

pytest.importorskip("peft")

SHORT = {"epochs": 1, "warmup_epochs": 0}
LORA = LoRAStage(**SHORT, rank=2, alpha=6, targets=["q_proj", "v_proj", "fc1"])
PROMPTED = VisualPromptStage(**SHORT, num_prompts=3)
STAGES = [LORA, PROMPTED, VisualPromptStage(**SHORT, num_prompts=3, num_layers=3, deep=False)]


def make(clip, stage, **parts):
    torch.manual_seed(0)
    return OVMultiLabelClassifier(
        clip, VOCABULARY, stages=[copy.deepcopy(stage), PromptStage(epochs=1)], **parts
    ).eval()


def features(encoder):
    with torch.no_grad():
        return torch.cat([part.reshape(2, -1, part.shape[-1]) for part in encoder(PIXELS)], dim=1)


def test_lora_at_init_is_the_original_bit_for_bit(tiny):
    original = OVMultiLabelClassifier(tiny, VOCABULARY).eval()
    assert torch.equal(scores(make(tiny, LORA)), scores(original))


def test_lora_is_the_papers_formula(tiny):
    """`W x + b + alpha / rank * B A x`, in the weights of a plain tower."""
    model = trained(make(tiny, LORA))
    clip = load_clip(tiny)
    state = model.model.image_encoder.state_dict()
    adapted = 0
    for block in (1, 2):
        for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.fc1"):
            prefix = f"vision_model.encoder.layers.{block}.{name}"
            down, up = (state[f"{prefix}.lora_{part}.default.weight"] for part in "AB")
            assert (len(down), up.shape[1]) == (2, 2)
            clip.get_submodule(prefix).weight.data += 6 / 2 * up @ down
            adapted += 1
    assert adapted == sum("lora_A" in name for name in state)
    torch.testing.assert_close(features(ImageEncoder(clip)), features(model.model.image_encoder), atol=1e-5, rtol=0)


def naive_prompted(clip, prompts, num_layers, deep):
    """Prompts between class token and patches, as the paper writes them; attention as a plain formula."""
    tower = clip.vision_model
    x = tower.pre_layrnorm(tower.embeddings(PIXELS))
    depth = len(tower.encoder.layers)
    for i, layer in enumerate(tower.encoder.layers):
        first = i == depth - num_layers
        if deep and i >= depth - num_layers:
            own = prompts[i - (depth - num_layers)]
            x = torch.cat([x[:, :1], own.expand(2, -1, -1), x[:, -16:]], dim=1)
        elif first:
            x = torch.cat([x[:, :1], prompts[0].expand(2, -1, -1), x[:, 1:]], dim=1)
        attention = layer.self_attn
        normed = layer.layer_norm1(x)
        q, k, v = (
            projection(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        x = x + attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.layer_norm2(x))
    x = torch.cat([x[:, :1], x[:, -16:]], dim=1)
    return clip.visual_projection(tower.post_layernorm(x))


@pytest.mark.parametrize("stage", STAGES[1:])
def test_visual_prompts_are_the_papers_equations(tiny, stage):
    model = make(tiny, stage)
    layers = model.model.image_encoder.tail(stage.num_layers).layers
    prompts = [p for layer in layers if (p := getattr(layer, "visual_prompts", None)) is not None]
    assert len(prompts) == (stage.num_layers if stage.deep else 1)
    assert all(prompt.abs().max() <= math.sqrt(6 / (3 * 12**2 + 32)) for prompt in prompts)
    with torch.no_grad():
        expected = naive_prompted(load_clip(tiny), prompts, stage.num_layers, stage.deep)
    torch.testing.assert_close(features(model.model.image_encoder), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, features(ImageEncoder(load_clip(tiny))), atol=1e-3)


def test_dropout_of_the_adapters_ends_with_their_stage(tiny):
    stages = [LoRAStage(**SHORT, rank=2, dropout=0.5), PromptStage(epochs=1)]
    model = trained(OVMultiLabelClassifier(tiny, VOCABULARY, stages=stages))
    first, second = features(model.model.image_encoder), features(model.model.image_encoder)
    assert not first.equal(second)
    model.start_stage(model.stages[1])
    assert features(model.model.image_encoder).equal(features(model.model.image_encoder))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_what_was_added_learns(tiny, stage, checkpointing):
    model = make(tiny, stage, gradient_checkpointing=checkpointing).train()
    model._trainer = type("One", (), {"world_size": 1, "global_step": 0})()
    model.log = lambda *_, **__: None
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning
    assert all("lora_" in name or name.endswith("visual_prompts") for name in learning)
    data = {"pixel_values": PIXELS, "labels": torch.tensor([[1, 0, 0], [0, 1, 1]], dtype=torch.int8)}
    trained(model).training_step(data, 0).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == learning
    model.start_stage(model.stages[1])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"model.prompt.context"}


@pytest.mark.parametrize("stage", STAGES)
def test_teacher_and_zero_shot_stay_the_original(tiny, stage):
    model, original = trained(make(tiny, stage, head=CosineHead())), ImageEncoder(load_clip(tiny))
    with torch.no_grad():
        teacher = model.teacher(model.model.image_encoder.trunk(PIXELS, len(model.teacher.layers))).patch_embeds
        assert torch.equal(teacher, original(PIXELS).patch_embeds)
    assert torch.equal(features(model.zero_shot().model.image_encoder), features(original))
    assert not torch.allclose(features(model.model.image_encoder), features(original), atol=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_what_was_added(tiny, stage, tmp_path):
    model = trained(make(tiny, stage))
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    vision = {name for name in checkpoint["state_dict"] if name.startswith("model.image_encoder")}
    assert all("lora_" in name or name.endswith("visual_prompts") for name in vision)
    torch.save(checkpoint, tmp_path / "x.ckpt")
    again = make(tiny, stage)
    again.load_learned(tmp_path / "x.ckpt")
    assert torch.equal(scores(again), scores(model))
    with pytest.raises(UserError, match="which no part takes|lacks"):
        OVMultiLabelClassifier(tiny, VOCABULARY).load_learned(tmp_path / "x.ckpt")


def test_saved_lora_is_a_plain_clip_that_scores_the_same(tiny, tmp_path):
    model = trained(make(tiny, LORA))
    model.save_pretrained(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        clip = {name for name in file.keys() if not name.startswith("prompt.")}  # noqa: SIM118
    assert clip == set(load_clip(tiny).state_dict())
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(scores(again), scores(model), atol=1e-5, rtol=1e-5)
    assert list(map(describe, again.stages)) == list(map(describe, model.stages))
    assert again.stages[0].targets == LORA.targets
    plain = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved", stages=[])
    assert torch.equal(scores(plain), scores(again))
    with torch.no_grad():
        theirs = CLIPModel.from_pretrained(tmp_path / "saved").eval().get_image_features(PIXELS).pooler_output
        torch.testing.assert_close(model.model.image_encoder(PIXELS).global_embeds, theirs, atol=1e-5, rtol=0)
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(scores(OVMultiLabelClassifier.from_pretrained(tmp_path / "twice")), scores(again))


@pytest.mark.parametrize("stage", STAGES[1:])
def test_saved_prompts_score_the_same_to_the_last_bit(tiny, stage, tmp_path):
    model = trained(make(tiny, stage))
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    assert torch.equal(scores(again), scores(model))
    assert torch.equal(scores(OVMultiLabelClassifier.from_pretrained(tmp_path / "saved", stages=[])), scores(model))
    more = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved", stages=[PromptStage()])
    assert torch.equal(scores(more), scores(model))
    plain = CLIPModel.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(features(ImageEncoder(plain)), features(ImageEncoder(load_clip(tiny))))


@pytest.mark.parametrize("stage", STAGES)
def test_half_precision(tiny, stage, tmp_path):
    model = trained(make(tiny, stage)).to(torch.bfloat16)
    assert scores(model).dtype == torch.float32
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    assert {p.dtype for p in again.parameters()} == {torch.float32}


@pytest.mark.parametrize("stage", STAGES)
def test_siglip_is_tuned_as_well(stage):
    torch.manual_seed(0)
    siglip = SiglipModel(sizes()).eval()
    model = make(siglip, stage, tokenizer=letters())
    # Without stages: torch may add in another order where a weight learns.
    original = OVMultiLabelClassifier(siglip, VOCABULARY, tokenizer=letters(), stages=[]).eval()
    assert torch.equal(scores(model), scores(original)) == isinstance(stage, LoRAStage)
    assert torch.equal(features(model.zero_shot().model.image_encoder), features(original.model.image_encoder))


@pytest.mark.parametrize("stage", STAGES)
def test_compiled_blocks_do_not_forget_what_was_added(tiny, stage, monkeypatch):
    """One compiled form serves all blocks: it must tell those that were adapted from the others."""
    model = trained(make(tiny, stage))
    plain = scores(model)
    monkeypatch.setattr("ovml.encoders.execution._compiled", cache(lambda block: torch.compile(block, backend="eager")))
    compiled = make(tiny, stage, compile=True)
    compiled.load_state_dict(model.state_dict())
    torch.testing.assert_close(scores(compiled), plain, atol=1e-5, rtol=1e-5)


def test_plain_state_keeps_what_has_no_adapter(tiny):
    clip = load_clip(tiny)
    assert all(plain_state(clip)[name] is value or torch.equal(plain_state(clip)[name], value)
               for name, value in clip.state_dict().items())  # fmt: skip
    model = make(tiny, LORA)
    state = plain_state(model.model.image_encoder)
    for name, value in ImageEncoder(clip).state_dict().items():
        assert torch.equal(state.pop(name), value), name
    assert not state


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (lambda: [LoRAStage(rank=0)], "LoRA: num_layers and rank must be at least 1"),
        (lambda: [LoRAStage(dropout=1.0)], "dropout from 0 to below 1"),
        (lambda: [LoRAStage(targets=["qkv"])], "targets: no 'qkv'; a block has fc1, fc2, k_proj"),
        (lambda: [LoRAStage(num_layers=4)], "from 0 to 3, the tower's blocks; got 4"),
        (lambda: [VisualPromptStage(num_prompts=0)], "num_prompts must be greater than 0; got 0"),
        (lambda: [VisualPromptStage(), VisionStage()], "'visual_prompt' and 'vision' change the same tower"),
        (lambda: [LoRAStage(), VisualPromptStage()], "'lora' and 'visual_prompt' change the same tower"),
    ],
)
def test_wrong_arguments_end_in_one_line(tiny, stages, message):
    with pytest.raises(UserError, match=message) as info:
        OVMultiLabelClassifier(load_clip(tiny), VOCABULARY, tokenizer=load_tokenizer(tiny), stages=stages())
    assert "\n" not in str(info.value)


def test_no_peft_is_said(tiny, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"needs peft; pip install 'ovml\[peft\]'"):
        make(tiny, LORA)


@pytest.mark.parametrize("name", ["LoRAStage", "VisualPromptStage"])
def test_fit_by_the_command(config, tmp_path, name):
    content = yaml.safe_load(Path(config).read_text())
    content["model"]["stages"] = [{"class_path": f"ovml.training.{name}", "init_args": SHORT}]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    arguments = ["--trainer.default_root_dir", str(tmp_path), "--trainer.limit_train_batches", "2"]
    assert main(["fit", "--config", str(tmp_path / "run.yaml"), *SMALL, *arguments]) == 0
    (checkpoint,) = (tmp_path / "version_0").glob("*/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert any(value.any() for key, value in state.items() if "lora_B" in key or "visual_prompts" in key)
    model = OVMultiLabelClassifier.from_pretrained(tmp_path / "version_0")
    assert torch.equal(model.state_dict()[min(state)], state[min(state)])
