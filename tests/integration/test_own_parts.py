"""One part of each kind, written outside the package in the one file `my_parts`, and nothing else opened for it."""

import json
import sys
import warnings

import pytest
import torch
from commands import SMALL, ovml_here
from my_parts import CountLoss, LastLabels, MaxPatchHead, SuffixPrompt

from ovml import OpenVocabularyModel, OVMultiLabelClassifier, PromptStage, load_model
from ovml.cli.main import COMMANDS, main
from ovml.saving import save_model

PARTS = [
    "--model.head=my_parts.MaxPatchHead",
    "--model.loss=my_parts.CountLoss",
    "--model.prompt=my_parts.SuffixPrompt",
    "--model.protocols=[my_parts.LastLabels]",
    "--data=my_parts.Greys",
    "--data.batch_size=4",
]
STAGES = """[
    {class_path: my_parts.ShiftStage, init_args: {epochs: 1, warmup_epochs: 0}},
    {class_path: PromptStage, init_args: {epochs: 1}},
    {class_path: HeadStage, init_args: {epochs: 1, warmup_epochs: 0}}]"""


def test_one_of_each_trains_is_measured_and_saved(tiny, tmp_path, capsys):
    command = ["fit", f"--model.clip={tiny}", f"--model.stages={STAGES}", *PARTS, "--trainer.accelerator=cpu"]
    assert ovml_here(*command, f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false") == 0
    printed = capsys.readouterr().out
    assert "last labels" in printed  # the protocol's title, in the table
    results = json.loads((tmp_path / "version_0" / "results.json").read_text())
    assert list(results) == ["zero-shot", "shift", "prompt", "head"]
    assert {"last_labels/mAP", "last_labels/F1@3", "gzsl/mAP"} <= set(results["head"])
    assert not {"last_labels/F1@5", "zsl/F1@3"} & set(results["head"])  # it has three labels, ZSL one

    state = torch.load(tmp_path / "version_0" / "head" / "last.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {
        "model.head.factor",
        "model.prompt.shift",
        "model.image_encoder.vision_model.encoder.layers.2.shift",
    }
    assert all(value.ne(1).all() and value.any() for value in state.values())  # all of them learned
    classifier = OVMultiLabelClassifier.from_pretrained(tmp_path / "version_0")
    classifier.save_pretrained(tmp_path / "saved")
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "saved")(pixels), classifier(pixels))


def test_a_command_of_ones_own(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "count", ("my_parts:Count", "count labels"))
    assert main(["count", "--label_names", "a,b,c"]) == 0
    assert capsys.readouterr().out == "3 labels\n"
    assert main(["count", "--labels"]) == 2
    assert main([]) == 0
    assert "count labels" in capsys.readouterr().out


HERE = """
from my_parts import MaxPatchHead
class HeadHere(MaxPatchHead):
    pass
"""
FIT = ["--model.stages", "[HeadStage]", "--trainer.max_epochs", "1", *SMALL]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder; it is not on the path, and what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_class_in_the_current_folder_is_named_without_a_path(config, here):
    (here / "head_here.py").write_text(HERE)
    (here / "package_here").mkdir()
    (here / "package_here" / "heads.py").write_text(HERE)
    for name in ("head_here.HeadHere", "package_here.heads.HeadHere"):
        arguments = ["--model.head", name, *FIT, f"--trainer.default_root_dir={here / name}"]
        assert ovml_here("fit", "--config", config, *arguments) == 0
        run = here / name / "version_0"
        assert ovml_here("test", "--config", str(run / "config.yaml"), "--ckpt_path", str(run)) == 0
    assert sys.path[-1] == str(here)


def test_installed_modules_come_before_those_in_the_current_folder(config, here):
    (here / "my_parts.py").write_text("raise RuntimeError")
    before = list(sys.path)
    with pytest.raises(SystemExit):
        ovml_here("fit", "--config", config, "--model.head", "my_parts.MaxPatchHead", *FIT, "--print_config")
    assert sys.path == before


def test_the_current_folder_is_not_searched_for_what_a_run_names(config, here, capsys):
    arguments = ["--model.head", "my_parts.MaxPatchHead", *FIT, f"--trainer.default_root_dir={here}"]
    assert ovml_here("fit", "--config", config, *arguments) == 0
    own = here / "version_0" / "config.yaml"
    own.write_text(own.read_text().replace("my_parts.MaxPatchHead", "strange.MaxPatchHead"))
    (here / "strange.py").write_text("raise SystemExit('this ran')\nclass MaxPatchHead: pass")
    before = list(sys.path)
    for command in ("test", "fit"):
        assert ovml_here(command, "--ckpt_path", str(own.parent)) == 2
        assert "names strange.MaxPatchHead, which is not a part" in capsys.readouterr().err
    assert sys.path == before


def test_a_model_whose_class_is_in_the_current_folder_says_how_it_is_found(tiny, here, picture, capsys):
    save_model(OpenVocabularyModel(tiny, ["cat", "dog"], MaxPatchHead()), here / "saved")
    file = here / "saved" / "config.json"
    file.write_text(file.read_text().replace("my_parts.MaxPatchHead", "strange.MaxPatchHead"))
    assert main(["tag", str(picture), "--model", str(here / "saved")]) == 2
    assert "no class 'strange.MaxPatchHead' here; install the package" in capsys.readouterr().err
    (here / "strange.py").write_text("raise SystemExit('this ran')\nclass MaxPatchHead: pass")
    assert main(["tag", str(picture), "--model", str(here / "saved")]) == 2
    assert "if it is the one in this folder, write PYTHONPATH=. before the command" in capsys.readouterr().err


def in_a_notebook(cls, monkeypatch):
    """A class as a cell of a notebook defines it."""
    own = type(f"My{cls.__name__}", (cls,), {})
    own.__module__ = "__main__"
    monkeypatch.setattr(sys.modules["__main__"], own.__name__, own, raising=False)
    return own


@pytest.mark.parametrize("name", ["head", "prompt", "loss", "stages", "protocols"])
def test_a_part_of_a_notebook_warns_when_the_model_is_built(tiny, name, monkeypatch):
    cls = {"head": MaxPatchHead, "prompt": SuffixPrompt, "loss": CountLoss, "stages": PromptStage}.get(name, LastLabels)
    own = in_a_notebook(cls, monkeypatch)()
    with pytest.warns(UserWarning, match=f"My{cls.__name__}: defined in a notebook.*; define it at the top of a file"):
        OVMultiLabelClassifier(tiny, ["cat", "dog", "cow"], **{name: [own] if name in ("stages", "protocols") else own})


def test_a_head_of_a_function_warns_in_a_model_without_lightning_too(tiny):
    class Local(MaxPatchHead):
        pass

    for make in (OpenVocabularyModel, OVMultiLabelClassifier):
        with pytest.warns(UserWarning, match="Local: defined inside of a function, so a model with it cannot") as told:
            make(tiny, ["cat", "dog"], Local())
        assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings(action="error"):
        OVMultiLabelClassifier(tiny, ["cat", "dog", "cow"], MaxPatchHead(), SuffixPrompt(), loss=CountLoss())
