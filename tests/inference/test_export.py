"""Exported models: the same logits without ovml, and in ONNX without torch."""

import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ovml import OpenVocabularyModel, Tagger, UserError
from ovml.cli.main import command
from ovml.data.synthetic.scenes import draw_scene
from ovml.encoders.image_processor import ImageProcessor
from ovml.heads import (
    CosineHead,
    DualCoOpHead,
    GlobalHead,
    Head,
    LocalHead,
    MLDecoderHead,
    OptimalTransportHead,
    QKSHead,
    QueryHead,
    SpatialSoftmaxHead,
    TwoStreamHead,
)
from ovml.inference import export
from ovml.inference.export import export_model, labels_path
from ovml.inference.export_formats import load_traced
from ovml.prompts import DualCoOpPrompt, TemplatePrompt
from ovml.saving import load_model, save_model
from ovml.utils.files import folder_beside

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_onnx.py"
LABELS = ["red circle", "blue star", "white heart", "fish", "moon", "green cross", "drop", "pink square"]
HEADS = [
    TwoStreamHead(5),
    TwoStreamHead(5, normalize=False),
    GlobalHead(),
    LocalHead(5),
    CosineHead(),
    DualCoOpHead(),
    SpatialSoftmaxHead(global_weight=0.5),
    QueryHead(4, 32, 2),
    MLDecoderHead(24, 4, 32),
    QKSHead(3, 2, 24, 4, 32),
    OptimalTransportHead(iterations=4),
]


class Learned(Head):
    """A head of the user's with a weight."""

    def __init__(self, weight=1.5):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, features, label_embeds):
        best = (features.patch_embeds @ label_embeds.T).amax(dim=1)
        return torch.tanh(self.weight * best + features.global_embeds @ label_embeds.T)


class Branching(Head):
    """A head that cannot be traced: what it does depends on values."""

    def forward(self, features, label_embeds):
        scores = features.global_embeds @ label_embeds.T
        return scores if scores.sum() > 0 else -scores


class Fixed(Head):
    """A head that is traced for the number of labels that it happens to be traced with."""

    def forward(self, features, label_embeds):
        return torch.stack([features.global_embeds @ row for row in label_embeds], dim=1)


class Random(Head):
    """A head that gives other scores each time."""

    def forward(self, features, label_embeds):
        scores = features.global_embeds @ label_embeds.T
        return scores + torch.rand_like(scores)


def model_with(head=None, labels=None, clip="ovml-demo"):
    prompt = DualCoOpPrompt(4) if head is not None and head.takes_pairs else None
    return OpenVocabularyModel(clip, labels=labels, head=head, prompt=prompt)


@pytest.fixture(scope="module")
def tiny(shallow):
    """Tracing takes a time per block."""
    return shallow


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model and its files, with labels and a prompt that is not the model's own."""
    model = model_with(labels=LABELS)
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return model, export_model(model, path, prompt="a drawing of a {}")


def run_onnx(path, pixel_values, label_embeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {"pixel_values": pixel_values.numpy(), "label_embeds": label_embeds.numpy()}
    return torch.from_numpy(session.run(None, inputs)[0])


def run_torch(path, pixel_values, label_embeds):
    return torch.export.load(path).module()(pixel_values, label_embeds)


@pytest.mark.parametrize(
    ("head", "suffix", "run"),
    # ONNX is made of what torch.export gives, so that a few heads serve to see that this can be saved.
    [(head, ".onnx", run_onnx) for head in HEADS] + [(head, ".pt2", run_torch) for head in HEADS[::3]],
    ids=lambda part: f"{type(part).__name__}-{vars(part).get('normalize')}" if isinstance(part, Head) else None,
)
def test_logits_are_the_models_whatever_the_sizes(head, suffix, run, tiny, tmp_path, monkeypatch):
    model = model_with(head, clip=tiny).eval()
    path = tmp_path / f"model{suffix}"
    export_model(model, path)
    monkeypatch.setattr("ovml.heads.chunks.CPU_BUDGET", 5000)  # what it is compared with takes labels in chunks
    for num_images in (1, 3):
        for num_labels in (2, 7, 500):
            pixel_values = torch.randn(num_images, 3, model.image_processor.size, model.image_processor.size)
            label_embeds = torch.nn.functional.normalize(torch.randn(num_labels, *model.label_shape), dim=-1)
            with torch.inference_mode():
                expected = model.head(model.image_encoder(pixel_values), label_embeds)
            found = run(path, pixel_values, label_embeds)
            exact = max(1e-4, 5e-6 * float(expected.abs().max()))  # logits of DualCoOp are differences of larger ones
            torch.testing.assert_close(found, expected, atol=exact, rtol=0)


@pytest.mark.parametrize(("suffix", "run"), [(".onnx", run_onnx), (".pt2", run_torch)])
def test_a_head_of_the_users_with_weights(suffix, run, tiny, tmp_path):
    model = model_with(Learned(0.7), clip=tiny)
    files = export_model(model, tmp_path / f"model{suffix}")
    pixel_values, label_embeds = torch.randn(1, 3, 48, 48), torch.randn(9, 16)
    with torch.inference_mode():
        expected = model.head(model.image_encoder(pixel_values), label_embeds)
    torch.testing.assert_close(run(files.path, pixel_values, label_embeds), expected, atol=1e-4, rtol=0)
    assert files.difference < 1e-4


def test_both_axes_are_named_and_free(exported):
    session = onnxruntime.InferenceSession(str(exported[1].path))
    pixel_values, label_embeds = session.get_inputs()
    (logits,) = session.get_outputs()
    size, dim = exported[0].image_processor.size, exported[0].embed_dim
    assert (pixel_values.name, pixel_values.shape) == ("pixel_values", ["batch", 3, size, size])
    assert (label_embeds.name, label_embeds.shape) == ("label_embeds", ["labels", dim])
    assert (logits.name, logits.shape) == ("logits", ["batch", "labels"])


def test_the_files_hold_labels_and_how_pictures_are_prepared(exported, tmp_path):
    model, files = exported
    assert sorted(p.name for p in files.path.parent.iterdir()) == ["model.labels.safetensors", "model.onnx"]
    with safe_open(files.labels, "pt") as file:
        metadata, embeds = file.metadata(), file.get_tensor("label_embeds")
    assert metadata["format"] == "ovml-label-embeddings"
    assert json.loads(metadata["labels"]) == LABELS
    prompt = TemplatePrompt("a drawing of a {}").bind(model.prompt.text_encoder)
    assert torch.equal(embeds, prompt(model.vocabulary))
    in_onnx = onnxruntime.InferenceSession(str(files.path)).get_modelmeta().custom_metadata_map
    for found in (metadata, in_onnx, metadata_of(export_model(model, tmp_path / "model.pt2").path)):
        assert prepared(found) == model.image_processor


def metadata_of(path):
    extra = {"ovml.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["ovml.json"])


def prepared(metadata):
    """The image processor that metadata describe."""
    found = {name.removeprefix("image_"): json.loads(v) for name, v in metadata.items() if name.startswith("image_")}
    resize = found.pop("resize")
    found |= {name: tuple(found[name]) for name in ("mean", "std")}
    return ImageProcessor(**found, resize=None if resize == found["size"] else resize)


@pytest.mark.parametrize(
    "own",
    [{"resize": 60}, {"squash": True}, {"resample": 2}, {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}],
    ids=str,
)
def test_an_image_processor_of_the_models_own_is_described(own, tiny, tmp_path):
    model = model_with(labels=["cat"], clip=tiny)
    model.image_processor = replace(model.image_processor, **own)
    files = export_model(model, tmp_path / "model.pt2")
    with safe_open(files.labels, "pt") as file:
        for found in (file.metadata(), metadata_of(files.path)):
            assert prepared(found) == model.image_processor


class Dropping(Head):
    """A head that is another one in training."""

    def forward(self, features, label_embeds):
        return torch.nn.functional.dropout(features.global_embeds, 0.5, self.training) @ label_embeds.T


def test_a_model_in_training_is_exported_as_it_is_used(tiny, tmp_path):
    model = model_with(Dropping(), clip=tiny).train()
    files = export_model(model, tmp_path / "model.pt2")
    pixel_values, label_embeds = torch.randn(2, 3, 48, 48), torch.randn(4, 16)
    with torch.no_grad():
        expected = model.eval()(pixel_values, ["a", "b"]).shape
        plain = model.head(model.image_encoder(pixel_values), label_embeds)
    assert expected == (2, 2)
    torch.testing.assert_close(run_torch(files.path, pixel_values, label_embeds), plain, atol=1e-4, rtol=0)


def with_differences(monkeypatch, *differences):
    """Let the written file differ from the model by so much of the largest logit, at each of the sizes checked."""
    load, rest = load_traced, list(differences)

    def other(path):
        run = load(path)

        def differs(*inputs):
            found = run(*inputs)
            return found + rest.pop(0) * max(1.0, found.abs().max().item())

        return differs

    monkeypatch.setattr("ovml.inference.export.load_traced", other)


@pytest.mark.parametrize("differences", [(5e-5, 1e-5), (1e-5, 5e-5)])
def test_the_largest_difference_of_all_sizes_is_told(tiny, tmp_path, monkeypatch, differences):
    with_differences(monkeypatch, *differences)
    assert export_model(model_with(clip=tiny), tmp_path / "model.pt2").difference == pytest.approx(5e-5, rel=0.1)


def test_a_file_of_another_shape_is_not_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ovml.inference.export.load_traced", lambda _: lambda pixels, labels: torch.zeros(len(pixels), 1)
    )
    with pytest.raises(UserError, match=r"the exported file gives \[1, 1\] for 1 images and 2 labels; not written"):
        export_model(model_with(clip=tiny), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_logging_is_as_before_after_an_export(tiny, tmp_path, caplog):
    for head in (None, Branching()):
        logging.disable(logging.INFO)
        try:
            with suppress(UserError):
                export_model(model_with(head, clip=tiny), tmp_path / f"{head is None}.pt2")
            assert logging.root.manager.disable == logging.INFO
        finally:
            logging.disable(logging.NOTSET)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_full_disk_is_one_line_and_leaves_nothing(suffix, tiny, tmp_path):
    """A limit to the size of files stands for it; torch's own writing would end the process."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = model_with(clip=tiny)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(
            UserError, match=rf"model\{suffix}: cannot be written \(File too large\); choose another place"
        ):
            export_model(model, tmp_path / f"model{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("differences", [(2e-4, 0), (0, 2e-4), (float("nan"), 0)])
def test_a_file_that_differs_at_one_size_is_not_written(tiny, tmp_path, monkeypatch, differences):
    with_differences(monkeypatch, *differences)
    with pytest.raises(UserError, match="the exported file differs from the model by .* on [13] images"):
        export_model(model_with(clip=tiny), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_model_itself_is_left_as_it_is(tiny, tmp_path):
    model = OpenVocabularyModel(tiny, labels=LABELS, compile=True).train()
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    export_model(model, tmp_path / "model.pt2")
    assert all(module.training for module in (model.image_encoder, model.head, model.prompt))
    assert learns == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.image_encoder.execution.compile


def test_half_precision_becomes_float32(tiny, tmp_path):
    model = model_with(labels=LABELS, clip=tiny).half()
    files = export_model(model, tmp_path / "model.onnx")
    with safe_open(files.labels, "pt") as file:
        label_embeds = file.get_tensor("label_embeds")
    pixel_values = torch.randn(2, 3, model.image_processor.size, model.image_processor.size)
    found = run_onnx(files.path, pixel_values, label_embeds)
    model.float()
    with torch.inference_mode():
        expected = model.head(model.image_encoder(pixel_values), label_embeds)
    assert label_embeds.dtype == found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_no_path_of_this_machine_is_in_the_file(suffix, tiny, tmp_path):
    files = export_model(model_with(clip=tiny), tmp_path / f"model{suffix}")
    assert files.labels is None
    content = files.path.read_bytes()
    for path in (Path(torch.__file__).parent, EXAMPLE.parents[1], tmp_path):
        assert os.fsencode(path) not in content


def test_an_operator_set_can_be_chosen(tiny, tmp_path):
    import onnx

    files = export_model(model_with(clip=tiny), tmp_path / "model.onnx", opset=18)
    assert {i.domain: i.version for i in onnx.load(files.path).opset_import}[""] == 18


def test_weights_too_large_for_one_file_lie_beside_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    files = export_model(model_with(clip=tiny), tmp_path / "model.onnx")
    assert files.data == tmp_path / "model.onnx.data"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert files.data.stat().st_size > 90_000
    monkeypatch.undo()
    whole = export_model(model_with(clip=tiny), tmp_path / "model.onnx", overwrite=True)
    assert whole.data is None
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def put(path, version, large):
    """What `export_model` does with its files; each is a text here, and a large model names its data file."""
    with folder_beside(path) as folder:
        written = folder / export._unused_name(path)
        written.write_text(f"{version} {written.name}.data" if large else version)
        labels_path(written).write_text(version)
        if large:
            Path(f"{written}.data").write_text(version)
        export._put_in_place(written, path)


def whole(path):
    """The version of a model; its labels, which may be missing, and its data must be of the same."""
    version, *data = path.read_text().split()
    for file in [labels_path(path)] * labels_path(path).exists() + [path.with_name(name) for name in data]:
        assert file.read_text() == version
    return version


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_stop_while_files_are_replaced_leaves_no_mixture(tmp_path, monkeypatch, before, after):
    path, rename = tmp_path / "model.onnx", Path.replace
    put(path, "first", large=True)
    for moment in range(3 + after):
        monkeypatch.undo()
        put(path, "old", before)
        assert whole(path) == "old"
        assert len(list(tmp_path.iterdir())) == 2 + before
        calls = iter([True] * moment)

        def stopping(one, other, calls=calls):
            if not next(calls, False):
                raise KeyboardInterrupt
            return rename(one, other)

        monkeypatch.setattr(Path, "replace", stopping)
        if moment < 2 + after:
            with pytest.raises(KeyboardInterrupt):
                put(path, "new", after)
        else:
            put(path, "new", after)
        assert whole(path) == ("new" if moment > after else "old")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Branching(), "Branching: cannot be exported"),
        (Fixed(), "Fixed: cannot be exported"),
        (Random(), "differs from the model"),
        (LocalHead(10_000), "top_k must be from 1"),
    ],
    ids=["branching", "fixed", "random", "too-many-patches"],
)
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_head_that_cannot_be_exported_is_one_line_and_leaves_the_old_file(
    head, message, suffix, tiny, tmp_path, capfd
):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"before")
    model = model_with(head, clip=tiny)
    capfd.readouterr()
    with pytest.raises(UserError, match=message) as error:
        export_model(model, path, overwrite=True)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_one_line(package, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs the package {package}; pip install 'ovml\\[export\\]'"):
        export_model(model_with(clip=tiny), tmp_path / "model.onnx")
    assert export_model(model_with(clip=tiny), tmp_path / "model.pt2").difference < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


def test_without_onnxruntime_it_says_that_nothing_was_checked(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ovml.inference.export_formats.find_spec", lambda name: None)
    command("export")(["--model", tiny, "--out", str(tmp_path / "model.onnx")])
    assert "not checked" in capsys.readouterr().out
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.parametrize("format", ["onnx", "torch.export"])
def test_the_command_writes_both_files_and_nothing_else(format, tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    command("export")(["--model", tiny, "--format", format, "--labels", "red heart, moon", "--prompt", "a {}"])
    name = {"onnx": "model.onnx", "torch.export": "model.pt2"}[format]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.labels.safetensors", name]
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 3
    assert "2 labels" in out
    assert "checked" in out
    assert err == ""


def test_labels_and_prompt_of_the_command_take_the_place_of_the_models_own(tiny, tmp_path, capsys):
    save_model(OpenVocabularyModel(tiny, ["cat", "dog", "sky"]), tmp_path / "saved")
    model, out = load_model(tmp_path / "saved"), tmp_path / "model.pt2"
    for options, labels, prompt in (
        ([], ["cat", "dog", "sky"], None),
        (["--labels", "a,b", "--prompt", "the {}"], ["a", "b"], "the {}"),
        (["--prompt", "the {}", "--prompt", "{} x"], ["cat", "dog", "sky"], ["the {}", "{} x"]),
    ):
        command("export")(["--model", str(tmp_path / "saved"), "--out", str(out), "--overwrite", *options])
        assert f"label embeddings of {len(labels)} labels" in capsys.readouterr().out
        with safe_open(labels_path(out), "pt") as file:
            assert json.loads(file.metadata()["labels"]) == labels
            expected = Tagger(model, labels, prompt=prompt).label_embeds()
            torch.testing.assert_close(file.get_tensor("label_embeds"), expected)


def test_overwriting_takes_the_old_labels_away(tiny, tmp_path, capsys):
    out = tmp_path / "model.pt2"
    command("export")(["--model", tiny, "--out", str(out), "--labels", "a,b"])
    with pytest.raises(UserError, match="exists already"):
        command("export")(["--model", tiny, "--out", str(out)])
    command("export")(["--model", tiny, "--out", str(out), "--overwrite"])
    assert list(tmp_path.iterdir()) == [out]
    assert "label embeddings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite"], "'tflite': unknown; it is one of onnx, torch.export"),
        (["--out", "{folder}/model.bin"], "end in .onnx, .pt2"),
        (["--format", "onnx", "--out", "{folder}/model.pt2"], "end in .onnx"),
        (["--format", "torch.export", "--out", "{folder}/model.onnx"], "end in .pt2"),
        (["--out", "{folder}/there.onnx"], "exists already; give another name, or use --overwrite"),
        (["--out", "{folder}/labelled.onnx"], "labelled.labels.safetensors: exists already"),
        (["--out", "{folder}/folder.onnx", "--overwrite"], "is a folder"),
        (["--out", "{folder}/there.onnx/model.onnx"], "cannot be written"),
        (["--out", "{folder}/a.pt2", "--opset", "18"], "opset"),
        (["--out", "{folder}/a.onnx", "--opset", "0"], "at least 1"),
        (["--out", "{folder}/a.onnx", "--opset", "999"], "cannot be exported|operator set"),
        (["--out", "{folder}/a.onnx", "--prompt", "a {{}}"], "no labels"),
        (["--out", "{folder}/a.onnx", "--labels", "a,a"], "is repeated"),
        (["--out", "{folder}/a.onnx", "--labels", "a", "--prompt", "a"], "{{}}"),
        (["--out", "{folder}/a.onnx", "--model", "{folder}/none.ckpt"], "no such checkpoint"),
        (["--nothing"], "no option --nothing; there are calibrate, format, "),
    ],
)
def test_bad_input_is_one_line(arguments, message, tiny, tmp_path):
    for name in ("there.onnx", "labelled.labels.safetensors"):
        (tmp_path / name).write_bytes(b"before")
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message.replace("{{}}", r"\{\}")) as error:
        command("export")(["--model", tiny, *(a.format(folder=tmp_path) for a in arguments)])
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def serve(*arguments):
    """Run the example in a process of its own, in which neither torch nor ovml may have been loaded at the end."""
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert not {'torch', 'ovml', 'transformers'} & set(sys.modules), 'loaded'; assert 'onnxruntime' in sys.modules"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLE), *map(str, arguments)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return [line.split("\t") for line in run.stdout.splitlines()]


def test_the_example_ranks_as_the_tagger_does_without_torch(exported, tmp_path):
    model, files = exported
    pictures = []
    for i, size in enumerate([(80, 80), (64, 64), (101, 160), (333, 77)]):
        picture = draw_scene(0, "test", i).image.resize(size)
        if i == 3:
            picture.putalpha(Image.linear_gradient("L").resize(size))
        pictures.append(tmp_path / f"{i}.png")
        picture.save(pictures[-1])
    rows = serve(files.path, *pictures)
    tagger = Tagger(model, top_k=5, prompt="a drawing of a {}")
    expected = [(str(image), label, score) for image, tags in tagger.tag(pictures) for label, score in tags]
    assert [(image, label) for image, _, label in rows] == [(image, label) for image, label, _ in expected]
    np.testing.assert_allclose([float(score) for _, score, _ in rows], [s for _, _, s in expected], atol=1e-5)


def test_the_example_prepares_pictures_bit_for_bit(exported):
    prepare = runpy.run_path(str(EXAMPLE))["prepare"]
    for resize in (None, 90):
        spec = replace(exported[0].image_processor, resize=resize, round_crop=resize is not None)
        how = {
            "round_crop": spec.round_crop,
            "size": spec.size,
            "resize": resize or spec.size,
            "mean": list(spec.mean),
            "std": list(spec.std),
        }
        for size in [(80, 80), (64, 64), (101, 160), (333, 77), (40, 20)]:
            image = draw_scene(0, "test", 0).image.resize(size)
            expected = spec(image).numpy()
            assert np.array_equal(prepare(image, **how, squash=spec.squash, resample=spec.resample), expected)


def test_another_file_of_labels_serves_the_same_model(exported, tmp_path):
    model, files = exported
    shutil.copy(files.path, tmp_path / "model.onnx")
    others = ["white heart", "red moon", "blue fish"]
    shutil.copy(
        labels_path(export_model(model, tmp_path / "other.pt2", labels=others).path),
        tmp_path / "model.labels.safetensors",
    )
    picture = tmp_path / "picture.png"
    draw_scene(0, "test", 1).image.save(picture)
    expected = [label for label, _ in Tagger(model, others).predict(picture)]
    assert [label for _, _, label in serve(tmp_path / "model.onnx", picture)] == expected
