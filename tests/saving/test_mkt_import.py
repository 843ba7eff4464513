"""Checkpoints in the published MKT code's naming, made here from a Hugging Face CLIP by a mapping of its own."""

import argparse

import pytest
import torch
from reference_clip import reference_clip, reference_tokenizer

from ovml import UserError, load_model
from ovml.cli.main import command
from ovml.encoders import ImageFeatures
from ovml.encoders.checkpoints import load_clip
from ovml.heads import GlobalHead, TwoStreamHead
from ovml.saving.mkt import import_mkt


def blocks(tower, num_layers):
    """OpenAI's names of a tower's blocks."""
    out = {}
    for i in range(num_layers):
        block, name = tower.encoder.layers[i], f"transformer.resblocks.{i}"
        attention = block.self_attn
        out[f"{name}.attn.in_proj_weight"] = torch.cat(
            [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        )
        out[f"{name}.attn.in_proj_bias"] = torch.cat(
            [attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias]
        )
        for theirs, module in (
            ("attn.out_proj", attention.out_proj),
            ("ln_1", block.layer_norm1),
            ("ln_2", block.layer_norm2),
            ("mlp.c_fc", block.mlp.fc1),
            ("mlp.c_proj", block.mlp.fc2),
        ):
            out[f"{name}.{theirs}.weight"], out[f"{name}.{theirs}.bias"] = module.weight, module.bias
    return out


def first_stage(clip):
    vision = clip.vision_model
    return {
        "class_embedding": vision.embeddings.class_embedding,
        "positional_embedding": vision.embeddings.position_embedding.weight,
        "projection_dist": clip.visual_projection.weight.T,
        "conv1.weight": vision.embeddings.patch_embedding.weight,
        "ln_pre.weight": vision.pre_layrnorm.weight,
        "ln_pre.bias": vision.pre_layrnorm.bias,
        **blocks(vision, 3),
        "ln_post.weight": vision.post_layernorm.weight,
        "ln_post.bias": vision.post_layernorm.bias,
        "projection.fc1.weight": torch.randn(48, 128),
        "projection.fc1.bias": torch.randn(48),
    }


def second_stage(clip, table):
    text = clip.text_model
    return {
        "positional_embedding": text.embeddings.position_embedding.weight,
        "text_projection": clip.text_projection.weight.T,
        "token_embedding.weight": table,
        **blocks(text, 2),
        "ln_final.weight": text.final_layer_norm.weight,
        "ln_final.bias": text.final_layer_norm.bias,
    }


def write(path, state, wrap=lambda state: state):
    torch.save(wrap({name: value.detach().clone() for name, value in state.items()}), path)
    return str(path)


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory):
    """Both stages' files, the CLIP that training began with, and its tokenizer."""
    folder = tmp_path_factory.mktemp("mkt")
    clip = reference_clip(golden)
    clip.save_pretrained(folder / "clip")
    reference_tokenizer().save_pretrained(folder / "tokenizer")
    table = clip.text_model.embeddings.token_embedding.weight.detach().clone()
    table[golden["prompt.used_ids"]] = golden["prompt.used_rows_after"]
    return {
        "clip": str(folder / "clip"),
        "tokenizer": str(folder / "tokenizer"),
        "state1": first_stage(clip),
        "state2": second_stage(clip, table),
        "stage1": write(folder / "first.pth", first_stage(clip)),
        "stage2": write(folder / "second.pth", {f"module.{k}": v for k, v in second_stage(clip, table).items()}),
    }


def load(files, **changes):
    return import_mkt(**{**{k: files[k] for k in ("stage1", "stage2", "clip", "tokenizer")}, "top_k": 4, **changes})


def embed(model, names):
    with torch.no_grad():
        return model.prompt(names)


def test_images_are_scored_as_by_the_published_code(files, golden):
    model = load(files)
    with torch.no_grad():
        features = model.image_encoder(golden["images"])
        torch.testing.assert_close(features.global_embeds, golden["global_embed"], atol=1e-5, rtol=0)
        torch.testing.assert_close(features.patch_embeds, golden["patch_embeds"], atol=1e-5, rtol=0)
        score = model.head(features, golden["label_embeds"])
        torch.testing.assert_close(score, golden["score"], atol=1e-5, rtol=0)
        score = GlobalHead()(ImageFeatures(*features), golden["label_embeds"])
        torch.testing.assert_close(score, golden["score_global_only"], atol=1e-5, rtol=0)


def test_labels_are_embedded_as_by_the_published_code(files, golden, golden_json):
    names = golden_json["prompt_labels"]
    after = embed(load(files), names)
    torch.testing.assert_close(after, golden["prompt.label_embeds_after"], atol=1e-5, rtol=0)
    untrained = {**files["state2"], "token_embedding.weight": files_table(files)}
    path = write(files_folder(files) / "untrained.pth", untrained)
    before = embed(load(files, stage2=path, clip=None), names)
    torch.testing.assert_close(before, golden["prompt.label_embeds"], atol=1e-5, rtol=0)


def files_table(files):
    from ovml.encoders.checkpoints import load_clip

    return load_clip(files["clip"]).text_model.embeddings.token_embedding.weight


def files_folder(files):
    from pathlib import Path

    return Path(files["stage1"]).parent


def test_without_the_clip_label_names_are_read_with_the_trained_table(files, golden, golden_json):
    """As the published inference.py does: written out with transformers' own text tower."""
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(files["clip"]).eval()
    clip.text_model.embeddings.token_embedding.weight.data.copy_(files["state2"]["token_embedding.weight"])
    with torch.no_grad():
        theirs = clip.get_text_features(golden["prompt.token_ids"]).pooler_output
    ours = embed(load(files, clip=None), golden_json["prompt_labels"])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(ours, golden["prompt.label_embeds_after"], atol=1e-3)


@pytest.mark.parametrize("wrap", [lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("prefix", ["module.", "visual.", "module.image_encoder."])
def test_other_wrappings_give_the_same(files, tmp_path, golden, wrap, prefix):
    state = {prefix + name: value for name, value in files["state1"].items()}
    state[f"{prefix}proj"] = state.pop(f"{prefix}projection_dist")
    model = load(files, stage1=write(tmp_path / "other.pth", state, wrap))
    with torch.no_grad():
        ours, theirs = (m.image_encoder(golden["images"]).global_embeds for m in (model, load(files)))
    assert torch.equal(ours, theirs)


def test_half_precision_files_become_float32(files, tmp_path):
    path = write(tmp_path / "half.pth", {name: value.half() for name, value in files["state1"].items()})
    model = load(files, stage1=path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    projection = files["state1"]["projection_dist"].half().float().T
    assert torch.equal(model.image_encoder.visual_projection.weight, projection)


def test_the_command_writes_a_model_that_loads_alone(files, tmp_path, golden, capsys):
    (tmp_path / "seen.txt").write_text("cat\nblack cat\n")
    (tmp_path / "unseen.txt").write_text("traffic light\n")
    out = str(tmp_path / "mkt")
    arguments = ["--stage1", files["stage1"], "--stage2", files["stage2"], "--tokenizer", files["tokenizer"]]
    labels = ["--labels-file", str(tmp_path / "seen.txt"), "--unseen-file", str(tmp_path / "unseen.txt")]
    command("import-mkt")([*arguments, *labels, "--clip", files["clip"], "--top-k", "4", "--out", out])
    assert f"ovml tag IMAGE --model {out}" in capsys.readouterr().out
    model, again = load(files), load_model(out)
    assert again.vocabulary.to_dict() == {"seen": ["cat", "black cat"], "unseen": ["traffic light"]}
    assert (again.image_processor.size, again.image_processor.resize) == (32, 36)
    assert again.image_processor.mean == (0.485, 0.456, 0.406)
    with torch.no_grad():
        assert torch.equal(again(golden["images"]), model(golden["images"], again.vocabulary))
    command("import-mkt")([*arguments, "--out", str(tmp_path / "plain")])
    assert "as the published inference.py does" in capsys.readouterr().out
    plain = load_model(tmp_path / "plain")
    assert plain.vocabulary is None
    assert isinstance(plain.head, TwoStreamHead)
    assert plain.head.top_k == 1  # 16 of 196, of these 16 patches


def refused(files, message, **changes):
    with pytest.raises(UserError, match=message) as info:
        load(files, **changes)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["ln_pre.weight", "transformer.resblocks.1.mlp.c_fc.bias", "projection_dist"])
def test_a_missing_key_is_named(files, tmp_path, name):
    state = {k: v for k, v in files["state1"].items() if k != name}
    refused(files, f"short.pth: the key {name!r} is missing", stage1=write(tmp_path / "short.pth", state))


def test_wrong_files_are_refused_in_one_line(files, tmp_path):
    refused(files, "no vision tower in it: the key 'conv1.weight' is missing .*as stage1", stage1=files["stage2"])
    refused(files, "no text tower in it: the key 'token_embedding.weight'", stage2=files["stage1"])
    refused(files, "no such file", stage1=str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("not a checkpoint")
    refused(files, "not a file of tensors", stage1=str(tmp_path / "text.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    refused(files, "holds no tensors by name", stage1=str(tmp_path / "list.pth"))
    refused(files, "not a file of tensors", stage1=str(tmp_path))


def test_code_in_a_pickle_is_not_run(files, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    refused(files, "without running code in it", stage1=str(tmp_path / "evil.pth"))
    torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "args.pth")
    refused(files, "without running code in it", stage2=str(tmp_path / "args.pth"))
    assert not (tmp_path / "ran").exists()


def test_towers_and_tables_that_do_not_belong_together(files, tmp_path, tiny):
    other = {**files["state2"], "text_projection": torch.randn(64, 40)}
    refused(files, "text_projection.weight is .40, 64., expected .48, 64.", stage2=write(tmp_path / "o.pth", other))
    refused(files, "its token table is .54, 32., not .49408, 64.", clip=tiny)
    short = {**files["state2"], "token_embedding.weight": torch.randn(100, 64)}
    refused(files, "has token 49,407", stage2=write(tmp_path / "s.pth", short), clip=None)


def test_the_command_says_what_is_wrong():
    with pytest.raises(UserError, match="--stage1.*see 'ovml import-mkt --help'"):
        command("import-mkt")([])
    with pytest.raises(UserError, match="--unseen-file needs --labels-file"):
        command("import-mkt")(["--stage1", "a", "--stage2", "b", "--out", "c", "--unseen-file", "d"])


@pytest.mark.parametrize(
    ("stage", "name", "value", "message"),
    [
        (1, "positional_embedding", torch.zeros(0, 64), "positional_embedding is [0, 64], expected 2 dimensions"),
        (1, "positional_embedding", torch.zeros(()), "positional_embedding is [], expected 2 dimensions"),
        (1, "conv1.weight", torch.zeros(3), "conv1.weight is [3], expected 4 dimensions"),
        (1, "conv1.weight", torch.zeros(64, 3, 0, 0), "conv1.weight is [64, 3, 0, 0]"),
        (1, "projection_dist", torch.zeros(3), "projection_dist is [3], expected 2 dimensions"),
        (1, "class_embedding", torch.zeros(()), "class_embedding is []"),
        (1, "transformer.resblocks.0.mlp.c_fc.weight", torch.zeros(3), "c_fc.weight is [3], expected 2 dimensions"),
        (1, "transformer.resblocks.0.mlp.c_fc.weight", torch.zeros(8, 200), "blocks of width 200"),
        (1, "transformer.resblocks.0.attn.in_proj_weight", torch.zeros(()), "in_proj_weight is []"),
        (1, "transformer.resblocks.999999999.x", torch.zeros(1), "attn.in_proj_weight' is missing"),
        (2, "token_embedding.weight", torch.zeros(3), "token_embedding.weight is [3], expected 2 dimensions"),
        (2, "token_embedding.weight", torch.zeros(1, 1).expand(10**9, 10**6), "'token_embedding.weight' is missing"),
        (2, "text_projection", torch.zeros(2, 2, 2), "text_projection is [2, 2, 2], expected 2 dimensions"),
        (2, "positional_embedding", torch.zeros(5), "positional_embedding is [5], expected 2 dimensions"),
    ],
)
def test_tensors_of_odd_shapes_are_one_line(tiny, tmp_path, stage, name, value, message):
    clip = load_clip(tiny)
    states = [first_stage(clip), second_stage(clip, clip.text_model.embeddings.token_embedding.weight)]
    states[stage - 1][name] = value
    paths = [tmp_path / f"stage{i}.pth" for i in (1, 2)]
    for state, path in zip(states, paths, strict=True):
        torch.save({key: tensor.detach() for key, tensor in state.items()}, path)
    with pytest.raises(UserError) as info:
        import_mkt(*paths, tokenizer=tiny)
    assert message in str(info.value)
    assert f"stage{stage}.pth" in str(info.value)
    assert "\n" not in str(info.value)
