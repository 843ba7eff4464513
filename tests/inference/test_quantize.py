"""Exported models in 8-bit integers: near the one in float32, and what is said of how near."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from ovml import OpenVocabularyModel, UserError
from ovml.cli.main import command
from ovml.data.synthetic.scenes import draw_scene
from ovml.heads import MLDecoderHead
from ovml.inference import quantize
from ovml.inference.export import export_model
from ovml.inference.export_formats import load_traced
from ovml.inference.quantize import calibration_images, compare, quantize_file, tower_matrices

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LABELS = ["red circle", "blue star", "white heart", "fish", "moon", "green cross", "drop", "pink square"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder of scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    for i in range(12):
        draw_scene(0, "test", i).image.save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The demo's model and its file in float32."""
    model = OpenVocabularyModel("ovml-demo", labels=LABELS)
    return model, export_model(model, tmp_path_factory.mktemp("plain") / "model.onnx").path


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_quantized_file_is_smaller_and_nearly_the_same(calibrated, plain, scenes, tmp_path):
    model, file = plain
    pixel_values = calibration_images(sorted(scenes.iterdir()), model.image_processor)
    label_embeds = model.embed_labels()
    quantize_file(file, tmp_path / "m.onnx", pixel_values if calibrated else None, label_embeds)
    assert (tmp_path / "m.onnx").stat().st_size < file.stat().st_size / 2
    quantized, float32 = load_traced(tmp_path / "m.onnx"), load_traced(file)
    found, expected = (run(pixel_values, label_embeds) for run in (quantized, float32))
    assert 0 < (found - expected).abs().max() < 0.03 * (expected.max() - expected.min())
    assert found.argmax(1).eq(expected.argmax(1)).float().mean() > 0.8


def test_scores_that_are_compared_are_of_all_images_and_labels():
    plain = {0.0: [3.0, 1.0, 2.0], 1.0: [0.0, 5.0, 1.0]}
    other = {0.0: [3.0, 1.0, 3.5], 1.0: [0.0, 5.0, 1.0]}
    first, second = (
        lambda pixels, _, scores=scores: torch.tensor([scores[x] for x in pixels.flatten().tolist()])
        for scores in (other, plain)
    )
    pixels = torch.arange(20).remainder(2).float().view(-1, 1)  # more than a batch
    parity = compare(first, second, pixels, torch.empty(3, 1), random=True)
    assert parity == (20, True, 3, 0.5, 1.5, 5.0)


def matrices(path):
    """How many nodes multiply integers, and how many float32."""
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    return kinds["MatMulInteger"], kinds["MatMul"] + kinds["Gemm"]


def test_the_head_stays_in_float32(tiny, tmp_path):
    model = OpenVocabularyModel(tiny, labels=["a", "b"], head=MLDecoderHead(24, 4, 32))
    file = export_model(model, tmp_path / "plain.onnx").path
    blocks = len(model.image_encoder.vision_model.encoder.layers)
    in_tower = 6 * blocks + 1  # query, key, value and output, two of the feed-forward network; the projection
    assert len(tower_matrices(onnx.load(file))) == in_tower
    quantize_file(file, tmp_path / "quantized.onnx", None, model.embed_labels())
    assert matrices(tmp_path / "quantized.onnx") == (in_tower, matrices(file)[1] - in_tower)


def test_a_calibration_takes_images_from_all_of_a_list(monkeypatch, tmp_path):
    monkeypatch.setattr(quantize, "MOST_IMAGES", 4)
    processor = OpenVocabularyModel("ovml-demo").image_processor
    grey = [torch.full((3, 96, 96), i / 10) for i in range(10)]
    (tmp_path / "broken.png").write_bytes(b"no image")
    whole = calibration_images([*grey[:3], tmp_path / "broken.png", *grey[4:]], processor)
    assert torch.equal(whole, calibration_images([grey[0], grey[6], grey[9]], processor))
    with pytest.raises(UserError, match=r"calibrate: none of 1 images can be read, the first: .*broken.png"):
        calibration_images([tmp_path / "broken.png"], processor)
    with pytest.raises(UserError, match="calibrate: none of 0 images can be read; give images"):
        calibration_images([], processor)
    with pytest.raises(UserError, match="calibrate: expected several images"):
        calibration_images(tmp_path / "broken.png", processor)


@pytest.mark.parametrize("calibrated", [True, False])
def test_metadata_are_kept_and_no_path_of_this_machine(calibrated, plain, tmp_path):
    model, file = plain
    quantize_file(file, tmp_path / "m.onnx", torch.zeros(1, 3, 96, 96) if calibrated else None, model.embed_labels())
    kept, found = ({p.key: p.value for p in onnx.load(f).metadata_props} for f in (file, tmp_path / "m.onnx"))
    assert kept.items() <= found.items()
    content = (tmp_path / "m.onnx").read_bytes()
    for place in (Path(torch.__file__).parent, Path(__file__).parents[2], tmp_path, file.parent):
        assert os.fsencode(place) not in content


def test_weights_too_large_for_one_file_lie_beside_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    files = export_model(OpenVocabularyModel(tiny), tmp_path / "model.onnx", quantize="int8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert files.data == tmp_path / "model.onnx.data"
    assert files.parity[:3] == (quantize.RANDOM_IMAGES, True, 500)
    assert load_traced(files.path)(torch.zeros(1, 3, 48, 48), torch.ones(2, 16)).shape == (1, 2)


def test_the_command_prints_how_near_it_is(tiny, scenes, tmp_path, capfd):
    out = tmp_path / "model.onnx"
    arguments = ["--model", tiny, "--labels", "a,b", "--quantize", "int8", "--calibrate", str(scenes)]
    command("export")([*arguments, "--out", str(out)])
    printed, err = capfd.readouterr()
    assert err == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.labels.safetensors", "model.onnx"]
    assert printed.splitlines()[2].startswith("checked: logits of the file in float32 differ from the model's by ")
    title, best, largest = printed.splitlines()[3:]
    assert title == "int8 against float32, 12 calibration images, 2 labels"
    assert best.strip().startswith("same best label")
    assert "of scores that spread over" in largest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quantize", "int4"], "quantize: .*int4.* int8|invalid choice"),
        (["--quantize", "int8", "--out", "{folder}/m.pt2"], "--quantize: only the format onnx can be quantized"),
        (["--calibrate", "{folder}"], "--calibrate: sets the scales of --quantize int8; give both"),
        (["--quantize", "int8", "--calibrate", "{folder}/nothing"], "nothing: no such file or folder"),
        (["--quantize", "int8", "--calibrate", "{folder}/empty"], "no images in this folder"),
        (["--quantize", "int8", "--calibrate", "{folder}/broken"], "--calibrate: none of 1 images can be read"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        command("export")(["--model", tiny, *(a.format(folder=tmp_path) for a in arguments)])
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_onnxruntime_nothing_is_quantized(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"quantize: needs the package onnxruntime; pip install 'ovml\[export\]'"):
        export_model(OpenVocabularyModel(tiny), tmp_path / "model.onnx", quantize="int8")
    assert list(tmp_path.iterdir()) == []


def test_what_onnxruntime_cannot_quantize_is_one_line(plain, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("this\nkind")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", fails)
    with pytest.raises(UserError, match="quantize: onnxruntime cannot quantize this model .*; leave it out") as error:
        quantize_file(plain[1], tmp_path / "model.onnx", None, torch.empty(0))
    assert "\n" not in str(error.value)
