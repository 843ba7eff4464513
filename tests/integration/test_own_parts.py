"""One part of each kind, written outside the package in the one file `my_parts`, and nothing else opened for it."""

import json

import torch
from commands import ovml_here

from ovml import OVMultiLabelClassifier, load_model
from ovml.cli.main import COMMANDS, main

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
