"""Exported files that tag in the place of the model they were made of."""

import json
import shutil

import pytest
import torch
from PIL import Image

from ovml import Tagger, UserError, load_model
from ovml.cli.main import command, main
from ovml.inference.export import export_model, labels_path
from ovml.inference.exported import ExportedModel
from ovml.inference.label_embeddings import write_label_embeddings

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LABELS = ["cat", "dog", "sky", "photo"]


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """A model, and the folder of its files."""
    model, folder = load_model(tiny, labels=LABELS), tmp_path_factory.mktemp("files")
    export_model(model, folder / "model.onnx")
    return model, folder


@pytest.fixture
def copied(files, tmp_path):
    """The files, to be damaged."""
    shutil.copytree(files[1], tmp_path / "files")
    return tmp_path / "files"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, size in enumerate([(80, 60), (48, 48), (50, 120)]):
        Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 20 + i).convert("RGB").save(folder / f"{i}.png")
    return folder


def test_a_file_tags_as_its_model(files, images):
    model, folder = files
    paths = sorted(images.iterdir())
    own, exported = Tagger(model), Tagger(ExportedModel(folder / "model.onnx"))
    assert exported.labels == own.labels
    torch.testing.assert_close(exported.score(paths), own.score(paths), atol=1e-5, rtol=0)
    assert [[tag.label for tag in tags] for tags in exported.predict(paths)] == [
        [tag.label for tag in tags] for tags in own.predict(paths)
    ]


def test_bytes_are_normalized_as_by_the_model(files):
    exported = ExportedModel(files[1] / "model.onnx")
    pixels = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    normalized = exported.image_processor.normalize_pixels(pixels)
    assert torch.equal(exported.encode_images(pixels), exported.encode_images(normalized))


@pytest.mark.parametrize("options", [[], ["--labels", "sky,cat"], ["--labels", "cat,dog", "--floor", "photo"]], ids=str)
def test_the_command_prints_what_it_prints_with_the_model(options, files, images, tiny, capsys):
    printed = []
    labels = options or ["--labels", ",".join(LABELS)]
    for model, own in ((str(files[1] / "model.onnx"), options), (tiny, labels)):
        assert main(["tag", str(images), "--model", model, "--format", "jsonl", *own]) == 0
        printed.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for found, expected in zip(*printed, strict=True):
        assert found["image"] == expected["image"]
        assert [tag["label"] for tag in found["labels"]] == [tag["label"] for tag in expected["labels"]]
        scores = ([tag["score"] for tag in row["labels"]] for row in (found, expected))
        assert next(scores) == pytest.approx(next(scores), abs=1e-5)


def test_an_interrupted_run_goes_on_with_the_same_file_only(copied):
    first = Tagger(ExportedModel(copied / "model.onnx")).settings()
    assert Tagger(ExportedModel(copied / "model.onnx")).settings() == first
    changed = onnx.load(copied / "model.onnx")
    changed.doc_string = "another file"
    onnx.save(changed, copied / "model.onnx")
    assert Tagger(ExportedModel(copied / "model.onnx")).settings() != first


def test_other_labels_take_the_place_of_the_first(copied, tiny, images, capsys):
    model, file = load_model(tiny), copied / "model.onnx"
    first = Tagger(ExportedModel(file), LABELS[:1]).settings()
    again = ["--model", tiny, "--labels", ",".join(LABELS), "--prompt", "{}", "--out", str(labels_path(file))]
    command("embed-labels")([*again, "--overwrite"])
    assert Tagger(ExportedModel(file), LABELS[:1]).settings() != first
    options = ["--model", tiny, "--labels", "tree,sea", "--out", str(labels_path(file)), "--overwrite"]
    command("embed-labels")(options)
    scores = Tagger(ExportedModel(file)).score(sorted(images.iterdir()))
    torch.testing.assert_close(
        scores, Tagger(model, ["tree", "sea"]).score(sorted(images.iterdir())), atol=1e-5, rtol=0
    )


def without_labels(folder):
    labels_path(folder / "model.onnx").unlink()


def damaged(folder):
    (folder / "model.onnx").write_bytes(b"damaged")


def program(folder):
    """A file of torch.export, which may hold code."""
    shutil.copyfile(folder / "model.onnx", folder / "model.pt2")


def damaged_labels(folder):
    labels_path(folder / "model.onnx").write_bytes(b"damaged")


def wider_labels(folder):
    write_label_embeddings(labels_path(folder / "model.onnx"), ["cat"], torch.zeros(1, 17))


def of_others(folder):
    found = onnx.load(folder / "model.onnx")
    del found.metadata_props[:]
    onnx.save(found, folder / "model.onnx")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, ["--model", "{folder}/none.onnx"], "none.onnx: no such checkpoint here"),
        (without_labels, [], "model.labels.safetensors: no label embeddings"),
        (damaged, [], "model.onnx: cannot be loaded .*; export the model again"),
        (program, ["--model", "{folder}/model.pt2"], "model.pt2: is not loaded, since torch runs what such a file may"),
        (damaged_labels, [], "model.labels.safetensors: no label embeddings"),
        (wider_labels, [], "model.onnx: does not take the label embeddings of model.labels.safetensors"),
        (of_others, [], "model.onnx: its metadata do not say how images are prepared"),
        (
            None,
            ["--labels", "cat,tree"],
            "--labels: 'tree' is not in .*.labels.safetensors; 'ovml embed-labels",
        ),
        (None, ["--labels", "tree,sea,cat"], "--labels: 'tree' and 1 others are not in"),
        (None, ["--prompt", "a {{}}"], "--prompt: .*model.onnx has no text tower"),
        (None, ["--device", "cuda"], "--device cuda: exported files run on the CPU"),
        (None, ["--probabilities"], "--probabilities: this model was never calibrated"),
    ],
)
def test_bad_input_is_one_line(change, arguments, message, copied, images):
    if change is not None:
        change(copied)
    options = ["--model", str(copied / "model.onnx"), *(a.format(folder=copied) for a in arguments)]
    with pytest.raises(UserError, match=message) as error:
        command("tag")([str(images), *options])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["explain", "export", "embed-labels"])
def test_other_commands_ask_for_the_model_itself(name, files, images, tmp_path):
    pictures = [str(images / "0.png")] if name == "explain" else []
    suffix = {"explain": ".png", "export": ".onnx", "embed-labels": ".safetensors"}[name]
    options = ["--model", str(files[1] / "model.onnx"), "--labels", "cat", "--out", str(tmp_path / f"out{suffix}")]
    with pytest.raises(UserError, match="an exported file can tag only; give the model that it was made of"):
        command(name)([*pictures, *options])


def test_a_prompt_of_ones_own_needs_the_model(files):
    with pytest.raises(UserError, match="prompt: model.onnx has no text tower; 'ovml embed-labels --model"):
        Tagger(ExportedModel(files[1] / "model.onnx"), prompt="a {}")
    with pytest.raises(UserError, match="prompt: model.onnx has no text tower"):
        Tagger(ExportedModel(files[1] / "model.onnx"), prompt=files[0].prompt).label_embeds()


def test_a_file_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="model none.onnx: no such file; check the path, or write one with 'ovml "):
        ExportedModel("none.onnx")


def test_without_onnxruntime_it_is_one_line(files, monkeypatch):
    monkeypatch.setattr("ovml.inference.export_formats.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model.onnx: needs the package onnxruntime; pip install 'ovml\[export\]'"):
        ExportedModel(files[1] / "model.onnx")
