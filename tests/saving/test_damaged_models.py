"""Damaged and hostile files of a model: each ends in one line that names the file, and nothing in it is run."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import save_checkpoint
from safetensors.torch import load_file, save_file

from ovml import OVMultiLabelClassifier, UserError, load_model
from ovml.cli.main import main
from ovml.metrics.calibration import Calibration

LABELS = {"seen": ["cat", "dog"], "unseen": ["black cat"]}
GONE = object()


@pytest.fixture(scope="module")
def classifier(tiny):
    model = OVMultiLabelClassifier(tiny, LABELS).eval()
    model.model.calibration = Calibration(3.0, -1.0, 0.3, model.model.vocabulary)
    return model


@pytest.fixture(scope="module")
def whole(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "model"
    classifier.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    save_checkpoint(classifier, path)
    return torch.load(path, weights_only=True)


@pytest.fixture
def saved(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "model"))


def put(tree, path, value):
    """Replace a node of a tree of mappings, or delete it."""
    *above, last = path.split(".")
    for key in above:
        tree = tree[key]
    if value is GONE:
        del tree[last]
    else:
        tree[last] = value


def edit(file, path, value):
    tree = json.loads(file.read_text())
    put(tree, path, value)
    file.write_text(json.dumps(tree))


def error(name, load=load_model, **options):
    with pytest.raises(UserError) as info:
        load(name, **options)
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vision_config", 5, "vision_config must be a mapping"),
        ("vision_config.hidden_act", "bogus", "vision_config: hidden_act must be an activation"),
        ("vision_config.hidden_act", 5, "hidden_act must be a string; got 5"),
        ("vision_config.intermediate_size", None, "intermediate_size must be a whole number; got None"),
        ("vision_config.intermediate_size", 65, "as [64, 32], config.json asks for [65, 32]"),
        ("vision_config.num_attention_heads", 0, "num_attention_heads must be greater than 0"),
        ("vision_config.num_attention_heads", 3, "config.json: "),
        ("vision_config.patch_size", 0, "patch_size must be greater than 0"),
        ("vision_config.image_size", [48, 48], "image_size must be a whole number"),
        ("vision_config.image_size", 10**9, "position_embedding.weight'"),
        ("vision_config.num_hidden_layers", 10**7, "asks for 10,000,000 blocks"),
        ("vision_config.num_hidden_layers", 4, "lacks 'vision_model.encoder.layers.3."),
        ("vision_config.hidden_size", 10**9, "config.json asks for"),
        ("vision_config.layer_norm_eps", float("nan"), "layer_norm_eps must be a finite number; got nan"),
        ("vision_config.attention_dropout", 5, "attention_dropout must be from 0 to 1; got 5"),
        ("text_config.vocab_size", 10**10, "token_embedding.weight'"),
        ("text_config.eos_token_id", 10**9, "eos_token_id must be a token of the vocabulary"),
        ("text_config.eos_token_id", None, "eos_token_id must be a token of the vocabulary"),
        ("projection_dim", 10**9, "visual_projection.weight'"),
        ("model_type", "bogus", "a checkpoint of type 'bogus'"),
        ("model_type", GONE, "a checkpoint of type None"),
    ],
)
def test_a_configuration_that_does_not_fit(saved, path, value, message):
    edit(saved / "config.json", path, value)
    text = error(saved)
    assert message in text
    assert "config.json" in text or "model.safetensors" in text
    assert str(saved) in text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ovml", 5, "holds no ovml recipe"),
        ("ovml.format", True, "ovml, format must be a whole number"),
        ("ovml.head", 5, "ovml, head must be a mapping"),
        ("ovml.head.init_args.top_k", "x", "head: TwoStreamHead: top_k must be a whole number; got 'x'"),
        ("ovml.head.init_args.top_k", 1.5, "head: TwoStreamHead: top_k must be a whole number; got 1.5"),
        ("ovml.adapters", 5, "ovml, adapters must be a list"),
        ("ovml.base_model", 5, "ovml, base_model must be a string or null"),
        ("ovml.training", 5, "ovml, training must be a mapping"),
        ("ovml.training.images", "bogus", "images must be 'all' or 'labelled'; got 'bogus'"),
        ("ovml.training.images", 7, "images must be 'all' or 'labelled'; got 7"),
        ("ovml.training.ks", "abc", "ks must be a list; got 'abc'"),
        ("ovml.training.ks", [0], "k must be at least 1"),
        ("ovml.training.stages", 5, "stages must be a list; got 5"),
        ("ovml.training.loss", None, "loss must be a mapping; got None"),
        ("ovml.training.distillation_weight", -1, "distillation_weight must be 0 or greater"),
        ("ovml.training.calibrator.class_path", "ovml.__main__.X", "calibrator: no class 'ovml.__main__.X'"),
    ],
)
def test_a_recipe_of_other_types(saved, path, value, message):
    edit(saved / "config.json", path, value)
    text = error(saved, OVMultiLabelClassifier.from_pretrained)
    assert message in text
    assert "config.json" in text


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("tokenizer_config.json", "model_max_length", "x", "(tokenizer: TypeError: '>'"),
        ("tokenizer_config.json", "eos_token", 5, "(tokenizer: TypeError: Special token eos_token"),
        ("tokenizer_config.json", "added_tokens_decoder", {"x": 5}, "(tokenizer: "),
        ("tokenizer.json", "model.vocab", {"<|endoftext|>": 0}, "tokenizer"),
        ("tokenizer.json", "model.vocab", 5, "(tokenizer: "),
        ("tokenizer.json", "model.type", "bogus", "(tokenizer: "),
        ("labels.json", "seen", "abc", "labels.json: labels, seen must be a list"),
        ("labels.json", "seen", [5], "labels.json: labels, seen, 0 must be a string; got 5"),
        ("labels.json", "unseen", ["Cat"], "labels.json: labels: 'Cat'"),
        ("calibration.json", "slope", float("nan"), "calibration.json: not a calibration: "),
        ("calibration.json", "threshold", 99, "calibration.json: not a calibration: "),
    ],
)
def test_other_files(saved, file, path, value, message):
    edit(saved / file, path, value)
    assert message in error(saved)


@pytest.mark.parametrize(
    "file", ["config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json", "labels.json"]
)
@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "[" * 100_000, "\0", "\xff\xfe"])
def test_what_is_no_json_object(saved, file, text):
    (saved / file).write_bytes(text.encode("latin-1"))
    assert str(saved) in error(saved)


def test_a_tokenizer_of_other_tokens_than_the_tower(saved):
    tree = json.loads((saved / "tokenizer.json").read_text())
    tree["added_tokens"].append({**tree["added_tokens"][0], "id": 10**9, "content": "cat"})
    (saved / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="tokenizer: .*cat.* has tokens .*, the text tower has those from 0 to 53"):
        load_model(saved)(torch.zeros(1, 3, 48, 48))


@pytest.mark.parametrize("file", ["tokenizer.json", "preprocessor_config.json", "model.safetensors", "config.json"])
def test_a_missing_file(tiny, tmp_path, file):
    folder = Path(shutil.copytree(tiny, tmp_path / "clip"))
    (folder / file).unlink()
    assert str(folder) in error(folder, labels=["cat"])


def test_weights_of_other_shapes_and_missing_ones(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "clip"))
    weights = load_file(folder / "model.safetensors")
    name = "visual_projection.weight"
    for other, message in (({}, f"lacks '{name}'"), ({name: torch.zeros(3, 32)}, f"has '{name}' as [3, 32]")):
        changed = {key: value for key, value in weights.items() if key != name} | other
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        assert f"model.safetensors {message}, config.json asks for [16, 32]" in error(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel", "quantization_config": {"quant_method": "bitsandbytes"}},
        {"num_labels": 10**8, "id2label": 5, "torch_dtype": "bogus", "dtype": 5, "pruned_heads": {"0": [1]}},
        {"a setting of a later version": {"x": 1}, "output_attentions": True, "return_dict": False},
    ],
)
def test_settings_that_shape_no_tower_change_nothing(whole, saved, settings):
    tree = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**tree, **settings}))
    pixels = torch.randn(1, 3, 48, 48)
    assert torch.equal(load_model(saved)(pixels), load_model(whole)(pixels))


# ---------------------------------------------------------------------- checkpoints

LOADERS = [load_model, OVMultiLabelClassifier.from_pretrained, OVMultiLabelClassifier.load_from_checkpoint]


TOUCH = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "marker"]}}


@pytest.mark.parametrize("load", LOADERS)
def test_a_checkpoint_is_loaded_without_what_lightning_keeps(classifier, checkpoint, tmp_path, load):
    path, pixels = tmp_path / "a.ckpt", torch.randn(2, 3, 48, 48)
    for change in ({}, {"hyper_parameters": 5}, {"hyper_parameters": {"clip": 5}}, {"pytorch-lightning_version": None}):
        content = {**checkpoint, **change}
        torch.save({name: value for name, value in content.items() if value is not None}, path)
        assert torch.equal(load(path)(pixels), classifier(pixels))


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    "hyper_parameters",
    [
        {"_class_path": "subprocess.Popen", "_instantiator": "builtins.exec"},
        {"_instantiator": "os.system"},
        {"head": {"class_path": "antigravity.x"}},
        *({part: TOUCH} for part in ("calibrator", "clip", "head", "tokenizer")),
        {"clip": {"class_path": "torch.distributed.nn.RemoteModule", "init_args": {"remote_device": "cpu", **TOUCH}}},
        {"clip": {"class_path": "torch.jit.RecursiveScriptModule"}, "tokenizer": "os.system", "labels": "/etc/passwd"},
    ],
)
def test_no_class_of_the_hyper_parameters_is_made(checkpoint, tmp_path, monkeypatch, load, hyper_parameters):
    monkeypatch.chdir(tmp_path)
    torch.save({**checkpoint, "hyper_parameters": hyper_parameters}, "a.ckpt")
    load("a.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ovml", 5, "holds no ovml recipe"),
        ("state_dict", 5, "state_dict must be a mapping; got 5"),
        ("state_dict", {"model.x": 5}, "state_dict, model.x must be a Tensor; got 5"),
        ("state_dict", {}, "lacks"),
        ("ovml.image_processor.size", "x", "image_processor, size must be a whole number"),
        ("ovml.image_processor.size", 80, "size is 80, the image tower of"),
        ("ovml.image_processor.mean", [0.5], "mean must be three finite numbers"),
        ("ovml.image_processor.resample", 99, "resample must be from 0 to 5"),
        ("ovml.image_processor", GONE, "image_processor must be a mapping; got None"),
        ("ovml.calibration", 5, "calibration must be a mapping or null; got 5"),
        ("ovml.calibration.slope", float("nan"), "slope must be a finite number; got nan"),
        ("ovml.labels", "/etc/passwd", "labels must be a mapping or null"),
        ("ovml.labels", {"seen": ["a", "A"]}, "differ only in case"),
        ("ovml.clip", 5, "clip must be a string or null; got 5"),
        ("ovml.clip", TOUCH, "clip must be a string or null; got {'class_path': 'subprocess.Popen'"),
        ("ovml.clip", "x" * 5000, "no such checkpoint here"),
        ("ovml.clip", None, "pass the same one as clip="),
        ("ovml.head.class_path", "subprocess.Popen", "cannot be made; give a subclass of Head"),
        ("ovml.head.class_path", "antigravity.x", "no class 'antigravity.x' here"),
        ("ovml.training", 5, "training must be a mapping; got 5"),
        ("ovml.stage_names", 5, "stage_names must be a list; got 5"),
        (
            "ovml.adapters",
            [{"class_path": "ovml.encoders.adapters.VisualPrompts", "init_args": {"num_prompts": 10**9}}],
            "num_prompts must be at most 4,096",
        ),
    ],
)
def test_a_damaged_checkpoint(checkpoint, tmp_path, load, path, value, message):
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    put(content, path, value)
    torch.save(content, tmp_path / "a.ckpt")
    text = error(tmp_path / "a.ckpt", load)
    assert message in text
    assert "a.ckpt" in text
    assert len(text) < 1000


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("cut", [0, 10, 0.5, 0.99])
def test_a_torn_checkpoint(checkpoint, tmp_path, load, cut):
    path = tmp_path / "a.ckpt"
    torch.save(checkpoint, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut if cut > 1 else cut * len(content))])
    assert "a.ckpt: not a checkpoint that ovml can read safely" in error(path, load)


class Code:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("load", LOADERS)
def test_a_checkpoint_with_code_is_refused_without_a_hint_at_how_to_run_it(checkpoint, tmp_path, capsys, load):
    torch.save({**checkpoint, "code": Code()}, tmp_path / "a.ckpt")
    text = error(tmp_path / "a.ckpt", load)
    assert text.endswith(
        "not a checkpoint that ovml can read safely (Weights only load failed); give one that ovml fit wrote"
    )
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strict": False}, "leave strict out; frozen weights need not be in the checkpoint"),
        ({"weights_only": False}, "leave weights_only out; nothing in a checkpoint is executed"),
        ({"hparams_file": "hparams.yaml"}, "leave hparams_file out; pass constructor arguments"),
        ({"map_location": {"cuda:0": "cpu"}}, "leave map_location out; give a device"),
    ],
)
def test_options_of_lightning_that_are_not_supported(tmp_path, options, message):
    assert message in error(tmp_path / "a.ckpt", OVMultiLabelClassifier.load_from_checkpoint, **options)


def test_options_of_lightning_that_are(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "a.ckpt")
    options = {"map_location": "cpu", "strict": True, "weights_only": True}
    model = OVMultiLabelClassifier.load_from_checkpoint(tmp_path / "a.ckpt", distillation_weight=0.5, **options)
    assert model.objective.distillation_weight == 0.5


# ---------------------------------------------------------------------- names, code, the command line


@pytest.mark.parametrize(
    "name", ["x" * 5000, "x" * 5000 + ".ckpt", "a/" + "y" * 5000, "a\0b", "\udcff", ".", "/", "/dev/zero", "../no/such"]
)
def test_names_of_no_model(name):
    with pytest.raises(UserError):
        load_model(name)


@pytest.mark.parametrize("through", ["folder", "checkpoint"])
@pytest.mark.parametrize("model_type", ["clip", "evil"])
def test_no_code_of_a_folder_is_run(tiny, checkpoint, tmp_path, monkeypatch, capsys, picture, model_type, through):
    folder = Path(shutil.copytree(tiny, tmp_path / "clip"))
    marker = tmp_path / "marker"
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: ...\n")
    maps = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoImageProcessor": "evil.Evil"}
    for file, own in (
        ("config.json", {"model_type": model_type, "auto_map": maps}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
        ("preprocessor_config.json", {"auto_map": maps}),
    ):
        (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **own}))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
    model = folder if through == "folder" else tmp_path / "a.ckpt"
    if through == "checkpoint":
        torch.save({**checkpoint, "ovml": {**checkpoint["ovml"], "clip": str(folder)}}, model)
    code = main(["tag", "--model", str(model), "--labels", "cat,dog", str(picture)])
    assert not marker.exists()
    assert "evil" not in sys.modules
    assert code == (0 if model_type == "clip" else 2)
    if code:
        assert "a checkpoint of type 'evil'" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["long name", "configuration", "weights", "checkpoint", "recipe"])
def test_the_command_line_ends_in_one_line(saved, tmp_path, picture, capsys, damage):
    name = str(saved)
    if damage == "long name":
        name = "x" * 5000
    elif damage == "configuration":
        edit(saved / "config.json", "text_config.num_hidden_layers", 10**7)
    elif damage == "weights":
        (saved / "model.safetensors").write_bytes(b"\xff" * 100)
    elif damage == "recipe":
        edit(saved / "config.json", "ovml.head.init_args", {"top_k": "x"})
    else:
        name = str(tmp_path / "torn.ckpt")
        Path(name).write_bytes(b"PK\x03\x04")
    assert main(["tag", "--model", name, "--labels", "cat,dog", str(picture)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("ovml: error: ")
