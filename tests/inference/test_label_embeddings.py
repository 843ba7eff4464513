"""Files of label embeddings, and the command that writes them."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ovml import OpenVocabularyModel, UserError
from ovml.cli.main import main
from ovml.inference.label_embeddings import read_label_embeddings, write_label_embeddings
from ovml.prompts import TemplatePrompt

NAMES = ("red circle", "blaue Größe", "heart")


@pytest.fixture(scope="module")
def model():
    return OpenVocabularyModel("ovml-demo")


def test_the_command_writes_what_one_call_gives(model, tmp_path, capsys):
    names, out = tmp_path / "names.txt", tmp_path / "labels.safetensors"
    names.write_text("\n".join(NAMES), encoding="utf-8")
    assert main(["embed-labels", "--labels-file", str(names), "--out", str(out)]) == 0
    assert f"label embeddings: {out} (3 labels, {model.embed_dim} numbers each)" in capsys.readouterr().out
    found = read_label_embeddings(out)
    assert found.labels == NAMES
    torch.testing.assert_close(found.embeds, model.embed_labels(NAMES), rtol=0, atol=1e-6)
    assert found.metadata == {"model": "ovml-demo", "prompt": "ContextPrompt"}
    with safe_open(out, "pt") as file:  # as those who do not use ovml read it
        assert json.loads(file.metadata()["labels"]) == list(NAMES)
        assert file.get_tensor("label_embeds").dtype == torch.float32


def test_templates_are_averaged_as_in_tagging(model, tmp_path):
    names, out = tmp_path / "names.csv", tmp_path / "labels.safetensors"
    names.write_text("id,name\n1,heart\n2,red circle\n")
    templates = ["a {}", "a drawing of a {}"]
    options = [part for template in templates for part in ("--prompt", template)]
    assert main(["embed-labels", "--labels-file", str(names), "--out", str(out), *options]) == 0
    prompt = TemplatePrompt(templates).bind(model.prompt.text_encoder)
    torch.testing.assert_close(read_label_embeddings(out).embeds, prompt(["heart", "red circle"]), rtol=0, atol=1e-6)


def test_nothing_is_replaced_unless_asked_for(tmp_path, capsys):
    names, out = tmp_path / "names.txt", tmp_path / "labels.safetensors"
    names.write_text("heart\n")
    out.write_text("mine")
    assert main(["embed-labels", "--labels-file", str(names), "--out", str(out)]) == 2
    assert out.read_text() == "mine"
    assert "exists already; give another name, or use --overwrite" in capsys.readouterr().err
    assert main(["embed-labels", "--labels-file", str(names), "--out", str(out), "--overwrite"]) == 0
    assert read_label_embeddings(out).labels == ("heart",)
    assert {path.name for path in tmp_path.iterdir()} == {"names.txt", "labels.safetensors"}


def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys):
    assert main(["embed-labels", "--out", str(tmp_path / "a.npy")]) == 2
    assert main(["embed-labels", "--out", str(tmp_path / "a.safetensors")]) == 2
    errors = capsys.readouterr().err
    assert "let the name end in .safetensors" in errors
    assert "no labels: ovml-demo knows drawn shapes, and needs the names to choose from: --labels" in errors
    with pytest.raises(UserError, match=r"2 labels need as many rows \[L, D\]; got \[3, 4\]"):
        write_label_embeddings(tmp_path / "a.safetensors", ["a", "b"], torch.zeros(3, 4))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_label_embeddings(tmp_path / "file" / "a.safetensors", ["a"], torch.zeros(1, 4))
    write_label_embeddings(tmp_path / "new" / "a.safetensors", ["a"], torch.zeros(1, 4))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("content", ["missing", "text", "other", "rows", "type"])
def test_other_files_are_no_label_embeddings(tmp_path, content):
    path = tmp_path / "labels.safetensors"
    metadata = {"format": "ovml-label-embeddings", "labels": '["a", "b"]'}
    if content == "text":
        path.write_text("heart\n")
    elif content == "other":
        save_file({"label_embeds": torch.zeros(2, 4)}, path)
    elif content == "rows":
        save_file({"label_embeds": torch.zeros(3, 4)}, path, metadata)
    elif content == "type":
        save_file({"label_embeds": torch.zeros(2, 4).half()}, path, metadata)
    with pytest.raises(UserError, match="no label embeddings .*give a file that ovml embed-labels wrote"):
        read_label_embeddings(path)
