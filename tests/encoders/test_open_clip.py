"""Checkpoints in OpenCLIP's own form, against a plain model with OpenCLIP's names of weights."""

import json
import shutil
from collections import OrderedDict
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPModel

from ovml import OVMultiLabelClassifier, UserError
from ovml.cli.main import main
from ovml.encoders import make_encoders
from ovml.encoders.checkpoints import load_clip, load_image_processor, load_tokenizer
from ovml.encoders.image_processor import ImageProcessor
from ovml.heads import CosineHead
from ovml.model import OpenVocabularyModel
from ovml.prompts import TemplatePrompt
from ovml.saving import load_model

CONTEXT, VOCABULARY, WIDTH, TEXT_WIDTH, EMBED = 77, 54, 32, 48, 16
TEXTS = ["a photo of a cat", "b", "zebra", "there is a dog"]
SAFE, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width, heads, ratio, activation):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = [("c_fc", nn.Linear(width, int(width * ratio))), ("gelu", activation())]
        self.mlp = nn.Sequential(OrderedDict([*layers, ("c_proj", nn.Linear(int(width * ratio), width))]))

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, layers, *arguments):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*arguments) for _ in range(layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 12, 12, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(17, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Blocks(3, WIDTH, 4, 2.0, activation)
        self.proj = nn.Parameter(torch.randn(WIDTH, EMBED))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x)))[:, 0] @ self.proj


class Text(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, TEXT_WIDTH))
        self.transformer = Blocks(2, TEXT_WIDTH, 3, 4.0, activation)
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.randn(TEXT_WIDTH, EMBED))

    def forward(self, ids):
        mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding, mask)
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(dim=1)] @ self.text_projection


class Reference(nn.Module):
    """A small random model whose weights have OpenCLIP's names; `custom_text` ones begin with `text.`."""

    def __init__(self, activation=nn.GELU):
        super().__init__()
        torch.manual_seed(0)
        self.visual, self.text = Visual(activation), Text(activation)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        for parameter in self.parameters():  # biases and norms begin as 0 and 1, which would hide what forgets them
            parameter.data += 0.1 * torch.randn_like(parameter)

    def state(self, custom_text=False):
        return {k if custom_text else k.removeprefix("text."): v.detach() for k, v in self.state_dict().items()}


def settings(**model):
    vision = {"layers": 3, "width": WIDTH, "head_width": 8, "mlp_ratio": 2.0, "patch_size": 12, "image_size": 48}
    text = {"layers": 2, "width": TEXT_WIDTH, "heads": 3, "context_length": CONTEXT, "vocab_size": VOCABULARY}
    return {
        "model_cfg": {"embed_dim": EMBED, "vision_cfg": vision, "text_cfg": text, **model},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"},
    }


@pytest.fixture
def checkpoint(tiny, tmp_path):
    """A folder in OpenCLIP's form, with a tokenizer of letters; given the settings and what writes the weights."""

    def write(config=None, state=None, file=SAFE):
        folder = tmp_path / "clip"
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(json.dumps(settings() if config is None else config))
        for path in Path(tiny).glob("tokenizer*"):
            shutil.copy(path, folder)
        state = Reference().state() if state is None else state
        if file == SAFE:
            save_file(state, folder / file)
        else:
            torch.save(state, folder / file)
        return str(folder)

    return write


def assert_same_embeddings(folder, reference):
    tokenizer, pixels = load_tokenizer(folder), torch.randn(2, 3, 48, 48)
    rows = tokenizer(TEXTS)["input_ids"]
    ids = torch.tensor([row + [0] * (CONTEXT - len(row)) for row in rows])
    image_encoder, text_encoder = make_encoders(load_clip(folder), tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(image_encoder(pixels).global_embeds, reference.visual(pixels), atol=1e-5, rtol=0)
        torch.testing.assert_close(text_encoder(TEXTS), reference.text(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("file", [SAFE, PICKLED])
@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize(("quick_gelu", "activation"), [(False, nn.GELU), (True, QuickGELU)])
def test_embeddings_are_those_of_a_plain_model(checkpoint, quick_gelu, activation, custom_text, file):
    reference = Reference(activation)
    folder = checkpoint(settings(quick_gelu=quick_gelu, custom_text=custom_text), reference.state(custom_text), file)
    assert_same_embeddings(folder, reference)
    assert load_clip(folder).logit_scale.item() == reference.logit_scale.item()


def test_checkpoints_of_a_training_load(checkpoint):
    """From several devices, with an optimizer, SigLIP's loss and buffers of older versions."""
    reference = Reference()
    state = {f"module.{name}": value for name, value in reference.state().items()}
    state |= {"module.logit_bias": torch.zeros(1), "module.attn_mask": torch.zeros(2, 2)}
    state["module.logit_scale"] = state["module.logit_scale"].reshape(1)
    folder = checkpoint(None, {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}}, PICKLED)
    assert_same_embeddings(folder, reference)


def test_weights_in_half_precision_are_loaded_in_full(checkpoint):
    folder = checkpoint(None, {name: value.half() for name, value in Reference().state().items()})
    assert {p.dtype for p in load_clip(folder).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ImageProcessor(48, round_crop=True)),
        ({"mean": [0.5] * 3, "std": [0.25] * 3}, ImageProcessor(48, (0.5,) * 3, (0.25,) * 3, round_crop=True)),
        ({"interpolation": "bilinear", "resize_mode": "squash"}, ImageProcessor(48, squash=True, resample=2)),
        (
            {"interpolation": "random", "resize_mode": "shortest", "size": 224, "mean": None},
            ImageProcessor(48, round_crop=True),
        ),
        (None, ImageProcessor(48, round_crop=True)),
    ],
)
def test_images_are_prepared_as_the_settings_say(checkpoint, given, expected):
    assert load_image_processor(checkpoint({**settings(), "preprocess_cfg": given})) == expected


def test_a_folder_with_both_forms_is_read_as_transformers_saved_it(tiny, checkpoint):
    folder = checkpoint()
    for path in Path(tiny).iterdir():
        shutil.copy(path, folder)
    assert torch.equal(load_clip(folder).visual_projection.weight, load_clip(tiny).visual_projection.weight)
    assert load_image_processor(folder) == load_image_processor(tiny)


def test_a_configuration_of_another_library_beside_it_is_passed_over(checkpoint):
    """As in the repositories of timm on the Hub."""
    folder, reference = checkpoint(), Reference()
    (Path(folder) / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224", "num_classes": 0}')
    assert_same_embeddings(folder, reference)


@pytest.fixture
def on_the_hub(checkpoint, tmp_path, monkeypatch):
    """The checkpoint under a name of the Hub, in the cache."""
    repository = tmp_path / "cache" / "models--some--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(checkpoint(), repository / "snapshots" / ("0" * 40)))


def test_a_name_on_the_hub_loads(on_the_hub):
    assert_same_embeddings("some/clip", Reference())
    assert load_model("some/clip", labels=["cat"]).image_processor.mean == (0.1, 0.2, 0.3)


def test_a_revision_on_the_hub_is_downloaded_with_its_weights(on_the_hub, monkeypatch):
    asked = []

    def missing(*_, **__):
        raise RemoteEntryNotFoundError("no config.json", response=Mock())

    def snapshot(name, allow_patterns, revision):
        asked.append((name, revision, {file for file in (SAFE, PICKLED) if file in allow_patterns}))
        return str(on_the_hub)

    monkeypatch.setattr("ovml.saving.load.hf_hub_download", missing)
    monkeypatch.setattr("ovml.saving.load.snapshot_download", snapshot)
    assert len(OVMultiLabelClassifier.from_pretrained("some/clip", revision="v1", labels=["cat"]).model.vocabulary) == 1
    assert asked == [("some/clip", "v1", {SAFE, PICKLED})]


def test_tags_are_the_same_by_the_command_in_python_and_after_saving(checkpoint, picture, tmp_path, capsys):
    folder = checkpoint()
    command = ["tag", str(picture), "--labels", "cat,dog,zebra", "--format", "tsv", "--prompt", "a photo of a {}"]
    assert main([*command, "--model", folder]) == 0
    printed = capsys.readouterr().out
    assert sorted(line.split("\t")[1] for line in printed.splitlines()) == ["cat", "dog", "zebra"]
    model = OVMultiLabelClassifier(folder, ["cat", "dog", "zebra"], head=CosineHead())
    model.save_pretrained(tmp_path / "saved")
    assert main([*command, "--model", str(tmp_path / "saved")]) == 0
    assert capsys.readouterr().out == printed
    assert isinstance(CLIPModel.from_pretrained(tmp_path / "saved"), CLIPModel)


def test_scores_are_cosines_of_the_plain_model(checkpoint):
    reference, folder = Reference(), checkpoint()
    model = OpenVocabularyModel(folder, ["cat", "zebra"], head=CosineHead(), prompt=TemplatePrompt("{}")).eval()
    pixels = torch.randn(2, 3, 48, 48)
    rows = load_tokenizer(folder)(["cat", "zebra"])["input_ids"]
    ids = torch.tensor([row + [0] * (CONTEXT - len(row)) for row in rows])
    with torch.no_grad():
        images, texts = reference.visual(pixels), reference.text(ids)
        expected = torch.cosine_similarity(images[:, None], texts[None], dim=2)
        torch.testing.assert_close(model(pixels), expected, atol=1e-5, rtol=0)


def test_fit_learns_from_it(checkpoint, config, tmp_path, capsys):
    command = ["fit", "--config", config, "--model.clip", checkpoint(), "--trainer.default_root_dir", str(tmp_path)]
    small = ["--data.train_size", "8", "--data.eval_size", "4", "--data.batch_size", "4"]
    assert main([*command, *small, "--trainer.accelerator", "cpu", "--trainer.limit_train_batches", "1"]) == 0
    capsys.readouterr()
    assert load_model(tmp_path / "version_0").image_processor.mean == (0.1, 0.2, 0.3)


def changed(tower, **values):
    config = settings()
    config["model_cfg"][tower].update(values)
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            changed("vision_cfg", timm_model_name="vit_base_patch16_siglip_224"),
            "its image tower is timm's 'vit_base_patch16_siglip_224'; ovml does not run this, take SigLIP's own "
            "checkpoint, such as google/siglip2-base-patch16-224",
        ),
        (
            changed("vision_cfg", timm_model_name="convnext_base", patch_size=None),
            "its image tower is timm's 'convnext_base'; ovml does not run this, take one with OpenCLIP's own ViT",
        ),
        (changed("text_cfg", hf_model_name="roberta-base"), "its text tower is 'roberta-base' of transformers"),
        (settings(multimodal_cfg={"width": 32}), "a CoCa, which has a text decoder"),
        (changed("vision_cfg", layers=[3, 4, 6, 3], patch_size=None), "its image tower is a ResNet"),
        (changed("vision_cfg", pool_type="avg"), "vision_cfg, pool_type 'avg': a CLIPModel has no such part"),
        (changed("vision_cfg", no_ln_pre=True), "vision_cfg, no_ln_pre True: a CLIPModel has no such part"),
        (changed("text_cfg", no_causal_mask=True), "text_cfg, no_causal_mask True: a CLIPModel has no such part"),
        (changed("text_cfg", tokenizer_kwargs={"clean": "canonicalize"}), "text_cfg, tokenizer_kwargs"),
        (changed("vision_cfg", image_size=[48, 64]), "image_size must be one number, of a square; got [48, 64]"),
        (
            changed("vision_cfg", layers="3"),
            "config.json, model_cfg, vision_cfg, layers must be a whole number",
        ),
        (changed("text_cfg", heads=0), "text_cfg: heads must be greater than 0; got 0"),
        (settings(embed_dim=-1), "model_cfg: embed_dim must be greater than 0; got -1"),
        (changed("text_cfg", eos_id=54), "eos_token_id must be a token of the vocabulary, from 0 to 53; got 54"),
        (changed("text_cfg", heads=5), "text_cfg: width must be a multiple of the number of heads; got 48 and 5"),
        (changed("vision_cfg", layers=10**9), "asks for 1,000,000,000 blocks"),
        (changed("vision_cfg", width=10**9), "open_clip_config.json asks for [1000000000]"),
        (
            {"model_cfg": {"embed_dim": 16}},
            "config.json, model_cfg must be a mapping with the key 'text_cfg'",
        ),
        ([], "open_clip_config.json must be a mapping; got []"),
    ],
)
def test_what_a_clip_model_cannot_hold_is_named(checkpoint, picture, capsys, config, message):
    folder = checkpoint(config)
    assert main(["tag", str(picture), "--labels", "cat", "--model", folder]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert folder in line


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"resize_mode": "longest"}, "resize_mode 'longest': ovml crops images ('shortest') or squashes them"),
        ({"interpolation": "nearest"}, "interpolation 'nearest': must be 'bicubic' or 'bilinear'"),
        ({"mean": [0.5, 0.5]}, "mean must be three finite numbers; got (0.5, 0.5)"),
        ({"std": [0.5, "x", 0.5]}, "preprocess_cfg, std, 1 must be a finite number"),
    ],
)
def test_preprocessing_that_ovml_lacks_is_named(checkpoint, preprocess, message):
    with pytest.raises(UserError) as info:
        load_image_processor(checkpoint({**settings(), "preprocess_cfg": preprocess}))
    assert message in str(info.value)
    assert "open_clip_config.json" in str(info.value)


def without(name):
    return {key: value for key, value in Reference().state().items() if key != name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("visual.proj"), "open_clip_model.safetensors lacks 'visual_projection.weight'"),
        (without("visual.transformer.resblocks.1.attn.in_proj_bias"), "lacks 'vision_model.encoder.layers.1.self_attn"),
        ({**Reference().state(), "positional_embedding": torch.zeros(32, TEXT_WIDTH)}, "as [32, 48]"),
        ({**Reference().state(), "visual.attn_pool.query": torch.zeros(4, 4)}, "has 'visual.attn_pool.query', which"),
        ({**Reference().state(), "visual.transformer.resblocks.3.ln_1.bias": torch.zeros(WIDTH)}, "layers.3.layer_nor"),
        ({**Reference().state(), "visual.proj": torch.zeros(2, 2, 2)}, "not a complete CLIP checkpoint"),
    ],
)
def test_weights_that_do_not_fit_are_named(checkpoint, state, message):
    with pytest.raises(UserError) as info:
        load_clip(checkpoint(None, state))
    assert message in str(info.value)
    assert "\n" not in str(info.value)


def test_damaged_files_end_in_one_line(checkpoint):
    folder = Path(checkpoint())
    for file, content, message in (
        (SAFE, (folder / SAFE).read_bytes()[:-100], "open_clip_model.safetensors"),
        (SAFE, b"", "open_clip_model.safetensors"),
        ("open_clip_config.json", b"{", "open_clip_config.json: cannot be read"),
        ("open_clip_config.json", b"[" * 10**5, "open_clip_config.json: cannot be read"),
        ("open_clip_config.json", b"\xff\xfe\xff", "open_clip_config.json: "),
    ):
        before = (folder / file).read_bytes()
        (folder / file).write_bytes(content)
        with pytest.raises(UserError) as info:
            OpenVocabularyModel(str(folder), ["cat"])
        assert message in str(info.value)
        assert "\n" not in str(info.value)
        (folder / file).write_bytes(before)
    (folder / SAFE).unlink()
    with pytest.raises(UserError, match=f"has open_clip_config.json, but neither {SAFE} nor {PICKLED}; save"):
        load_clip(str(folder))


class Runs:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    "state", [{"visual.proj": Runs()}, [1], {"visual.proj": torch.zeros(1).expand(10**6, 10**6)}, {3: torch.zeros(1)}]
)
def test_a_pickle_is_read_as_plain_tensors_only(checkpoint, capsys, state):
    folder = checkpoint(None, state, PICKLED)
    with pytest.raises(UserError, match="not a complete CLIP checkpoint") as info:
        load_clip(folder)
    assert "\n" not in str(info.value)
    assert "executed" not in capsys.readouterr().out


def test_a_missing_or_foreign_tokenizer_is_said(checkpoint):
    folder = Path(checkpoint(changed("text_cfg", eos_id=40)))
    with pytest.raises(UserError, match=r"its tokenizer ends texts with token 53, and the text tower reads token 40"):
        load_model(folder, labels=["cat"])
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"tokenizer.*those of openai/clip-vit-base-patch16 serve") as info:
        load_model(folder, labels=["cat"])
    assert "\n" not in str(info.value)
