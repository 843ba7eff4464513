import re

import pytest
import torch

from ovml import OpenVocabularyModel, Tagger, UserError, load_model
from ovml.cli.main import main
from ovml.data.synthetic.scenes import LABELS, draw_scene
from ovml.heads import QueryHead
from ovml.inference.label_embeddings import read_label_embeddings
from ovml.inference.patches import find_labels
from ovml.inference.ray_stages import TaggerOptions
from ovml.saving import save_model
from ovml.utils.devices import choose_device

SCENES = [draw_scene(0, "pretrain", number).image for number in range(6)]


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.003)])
def test_half_precision_ranks_the_same_label_first_with_scores_in_float32(precision, tolerance):
    model, half = load_model("ovml-demo"), load_model("ovml-demo", precision=precision)
    assert {half.dtype, next(half.prompt.parameters()).dtype} == {
        {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    }
    scores, rough = (Tagger(one, LABELS).score(SCENES) for one in (model, half))
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, scores)
    assert (rough - scores).abs().max() < tolerance * scores.abs().max()
    assert not torch.equal(rough, rough.to(half.dtype).float())
    assert torch.equal(rough.argmax(dim=1), scores.argmax(dim=1))


def test_the_head_keeps_its_precision(tiny):
    model = OpenVocabularyModel(tiny, ["cat", "dog"], head=QueryHead()).set_precision(torch.bfloat16)
    assert {parameter.dtype for parameter in model.head.parameters()} == {torch.float32}
    scores = model(torch.zeros(1, 3, 48, 48))
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def test_bytes_are_normalized_as_the_image_processor_does(tiny):
    model = OpenVocabularyModel(tiny, ["cat", "dog"]).eval()
    processor = model.image_processor
    pixels = torch.stack([processor(image) for image in SCENES])
    crops = [processor.crop(image) for image in SCENES]
    raw = torch.stack([torch.frombuffer(bytearray(c.tobytes()), dtype=torch.uint8).view(*c.size, 3) for c in crops])
    with torch.inference_mode():
        of_bytes, of_floats = model(raw.permute(0, 3, 1, 2)), model(pixels)
    torch.testing.assert_close(of_bytes, of_floats)


def test_a_figure_of_a_model_in_half_precision_has_its_ranking():
    half = load_model("ovml-demo", precision="bf16")
    _, evidence = find_labels(Tagger(half, LABELS, num_workers=0), SCENES[0], 3)
    assert [found.label for found in evidence] == [
        label for label, _ in Tagger(half, LABELS, top_k=3).predict(SCENES[0])
    ]
    assert evidence[0].similarity.dtype == "float32"


def test_an_unknown_precision_is_refused_before_the_model_is_read():
    with pytest.raises(UserError, match="precision must be one of"):
        load_model("no/such-model", precision="int3")


def test_commands_say_where_they_run(tiny, picture, tmp_path, capsys):
    labels, folder = ["--labels", "cat,dog", "--model", str(tiny)], str(tmp_path)
    for command in (
        ["tag", str(picture)],
        ["explain", str(picture), "--out", f"{folder}/why.png"],
        ["embed-labels", "--out", f"{folder}/labels.safetensors"],
    ):
        chosen = ["--device", "cpu", "--precision", "bf16"]
        assert main([*command, *labels, *chosen]) == 0
        assert "runs on" not in capsys.readouterr().err
        again = ["--overwrite"] if command[0] == "embed-labels" else []
        assert main([*command, *labels, *again]) == 0
        said = capsys.readouterr().err
        assert choose_device("auto").type == "cpu" or re.search("^ovml: runs on (mps|cuda)", said, re.MULTILINE)
        assert "runs on cpu" not in said
    exact = read_label_embeddings(tmp_path / "labels.safetensors").embeds
    assert main(["embed-labels", *labels, "--out", f"{folder}/rough.safetensors", "--precision", "bf16"]) == 0
    rough = read_label_embeddings(tmp_path / "rough.safetensors").embeds
    assert torch.equal(rough, rough.bfloat16().float())
    torch.testing.assert_close(rough, exact, atol=0.02 * float(exact.abs().max()), rtol=0)
    assert main(["tag", str(picture), *labels, "--precision", "16-mixed"]) == 2


def test_a_precision_that_is_slow_here_is_said(tiny, picture, capsys, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert (
        main(["tag", str(picture), "--labels", "cat", "--model", str(tiny), "--device", "cpu", "--precision", "bf16"])
        == 0
    )
    assert "--precision bf16: slow on this processor" in capsys.readouterr().err


def test_a_saved_model_is_loaded_in_half_precision(tiny, tmp_path):
    save_model(OpenVocabularyModel(tiny, ["cat", "dog"]), tmp_path / "saved")
    assert load_model(tmp_path / "saved", precision="bf16", device="cpu").dtype == torch.bfloat16
    assert load_model(tmp_path / "saved").dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_ray_takes_a_precision_too(tiny, precision):
    options = TaggerOptions(str(tiny), load_model, ["cat", "dog"], precision=precision)
    assert options.tagger("cpu").model.dtype == {"bf16": torch.bfloat16, "float32": torch.float32}[precision]
