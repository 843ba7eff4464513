"""The command line, run as a person runs it."""

import io
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import pandas
import pytest
import torch
import yaml
from commands import SMALL, ovml, ovml_here
from lightning.pytorch import Callback
from PIL import Image
from stopper import ControlC, FullDisk, PowerCut, Terminate, ended_by

from ovml import Tagger, load_model
from ovml.cli.main import COMMANDS, main
from ovml.data import DemoDataModule
from ovml.inference import tag_output


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A finished run."""
    root = tmp_path_factory.mktemp("runs")
    command = ["fit", "--config", config, *SMALL, "--trainer.default_root_dir", str(root)]
    assert ovml_here(*command) == 0
    return root / "version_0"


def learned(run, stage):
    return torch.load(run / stage / "last.ckpt", weights_only=True)["state_dict"]


def test_fit_leaves_checkpoints_logs_configuration_and_results(run):
    assert set(json.loads((run / "results.json").read_text())) == {"zero-shot", "vision", "prompt"}
    assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == 5
    for stage in ("vision", "prompt"):
        assert (run / stage / "last.ckpt").is_file()
        rows = (run / stage / "log" / "metrics.csv").read_text().splitlines()
        assert "val/zsl/mAP" in rows[0]
        assert len(rows) > 3
        assert list((run / stage / "log").glob("events.out.tfevents*"))


def test_the_second_stage_starts_from_the_first(run):
    vision, prompt = learned(run, "vision"), learned(run, "prompt")
    changed = {name for name in vision if not torch.equal(vision[name], prompt[name])}
    assert changed == {"model.prompt.context"}


@pytest.mark.parametrize(("stage", "epoch"), [("vision", 0), ("vision", 2), ("prompt", 1)])
def test_a_killed_run_resumes_to_the_same_weights(run, config, tmp_path, stage, epoch):
    command = ["fit", "--config", config, *SMALL]
    command += ["--trainer.default_root_dir", str(tmp_path)]
    killed = ovml(*command, *ended_by(PowerCut, stage, epoch))
    assert killed.returncode == 9, killed.stderr
    assert (tmp_path / "version_0" / "prompt").exists() == (stage == "prompt")
    assert ovml_here(*command, "--ckpt_path", "last") == 0
    assert not (tmp_path / "version_1").exists()
    for name in ("vision", "prompt"):
        unbroken, again = learned(run, name), learned(tmp_path / "version_0", name)
        assert all(torch.equal(unbroken[key], again[key]) for key in unbroken)
        logs = sorted(path.name for path in (tmp_path / "version_0" / name).glob("log*"))
        assert logs == (["log", "log_1"] if name == stage else ["log"])
        written = [log for log in logs if (tmp_path / "version_0" / name / log / "metrics.csv").is_file()]
        assert written == (logs if epoch else logs[-1:])  # in its first epoch it was killed before it logged
    assert json.loads((run / "results.json").read_text()) == json.loads(
        (tmp_path / "version_0" / "results.json").read_text()
    )


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (ControlC, 130, "ovml: interrupted; 'ovml fit --ckpt_path {run}' resumes from the last finished epoch"),
        (Terminate, 143, "ovml: terminated; 'ovml fit --ckpt_path {run}' resumes from the last finished epoch"),
        (FullDisk, 1, "ovml: error: somewhere/last.ckpt: No space left on device; make room"),
    ],
)
def test_an_ended_run_says_how_to_go_on(config, tmp_path, ending, code, said):
    command = ["fit", "--config", config, *SMALL, "--trainer.default_root_dir", str(tmp_path)]
    ended = ovml(*command, *ended_by(ending, "vision", 1))
    assert ended.returncode == code
    assert said.format(run=tmp_path / "version_0") in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "version_0" / "vision" / "last.ckpt").is_file()


@pytest.mark.parametrize(("stage", "name"), [("VisionStage", "vision"), ("PromptStage", "prompt")])
def test_either_stage_runs_alone(config, tmp_path, stage, name):
    stages = f"[{{class_path: ovml.training.{stage}, init_args: {{epochs: 1, warmup_epochs: 0}}}}]"
    arguments = ["--model.stages", stages, "--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--config", config, *SMALL, *arguments]) == 0
    assert set(json.loads((tmp_path / "version_0" / "results.json").read_text())) == {"zero-shot", name}


def test_a_fast_dev_run_leaves_nothing_behind(config, tmp_path, capsys):
    arguments = ["--trainer.fast_dev_run", "true", "--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main(["fit", "--config", config, *SMALL, *arguments]) == 0
    assert capsys.readouterr().out.split("\n")[-2] == "fast_dev_run: every stage ran; no run is kept"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("nothing", ["max_epochs", "max_steps", "limit_train_batches"])
def test_a_stage_that_takes_no_step_is_an_error(config, tmp_path, capsys, nothing):
    arguments = [f"--trainer.{nothing}", "0", "--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--config", config, *SMALL, *arguments]) == 2
    assert f"trainer.{nothing}: 0 trains nothing; leave it out, or allow a step" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_result_of_a_stage_is_that_of_its_last_weights(config, tmp_path):
    stages = "[{class_path: ovml.training.VisionStage, init_args: {epochs: 3, warmup_epochs: 0, lr: 0.01}}]"
    arguments = ["--trainer.check_val_every_n_epoch", "2", "--trainer.max_epochs", "3", "--model.stages", stages]
    assert main(["fit", "--config", config, *SMALL, *arguments, "--trainer.default_root_dir", str(tmp_path)]) == 0
    run = tmp_path / "version_0"
    assert main(["validate", "--ckpt_path", str(run)]) == 0
    files = [run / "results.json", run / "validate_results.json"]
    found, expected = (json.loads(file.read_text())["vision"] for file in files)
    ranked = {name for name in expected if not name.startswith("calibration")}
    assert {name: found[name] for name in ranked} == pytest.approx({name: expected[name] for name in ranked})


def test_a_head_of_ones_own_is_named_on_the_command_line(config, tmp_path):
    arguments = ["--model.head", "my_parts.MaxPatchHead", "--model.head.factor", "2"]
    arguments += ["--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--config", config, *SMALL, *arguments]) == 0
    factor = learned(tmp_path / "version_0", "vision")["model.head.factor"]
    assert factor != 2
    assert abs(factor - 2) < 0.1
    assert main(["test", "--ckpt_path", str(tmp_path / "version_0"), *SMALL]) == 0


def test_test_needs_only_the_run(run, capsys):
    assert main(["test", "--ckpt_path", str(run)]) == 0
    table = capsys.readouterr().out
    for text in ("ZSL", "GZSL", "mAP", "F1@5", "zero-shot CLIP", "vision stage", "prompt stage"):
        assert text in table
    rows = json.loads((run / "test_results.json").read_text())
    assert set(rows) == {"zero-shot", "vision", "prompt"}
    assert main(["test", "--ckpt_path", str(run / "vision" / "last.ckpt")]) == 0
    assert set(json.loads((run / "test_results.json").read_text())) == {"zero-shot", "vision"}


def test_validate_gives_what_fit_gave(run):
    assert main(["validate", "--ckpt_path", str(run)]) == 0
    again, first = (json.loads((run / f).read_text()) for f in ("validate_results.json", "results.json"))
    for row, metrics in first.items():
        assert again[row] == pytest.approx(metrics, abs=1e-6)


def test_predict_writes_a_line_per_image(run):
    assert main(["predict", "--ckpt_path", str(run)]) == 0
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [line["image_id"] for line in lines] == [f"test-{i:06d}" for i in range(12)]
    scores = [tag["score"] for tag in lines[0]["labels"]]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("checkpoint", ["", "vision/last.ckpt"])
def test_predictions_are_the_ranking_of_the_checkpoint_that_is_named(run, checkpoint):
    assert main(["predict", "--ckpt_path", str(run / checkpoint)]) == 0
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    config = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    data = DemoDataModule(**{name: config[name] for name in ("train_size", "eval_size", "cache_dir", "scene_seed")})
    images = [row["image"] for row in data.dataset("test")]
    model = load_model(run / (checkpoint or "prompt/last.ckpt"))
    for line, tags in zip(lines, Tagger(model, top_k=10).predict(images), strict=True):
        assert [tag["label"] for tag in line["labels"]] == [tag.label for tag in tags]
        assert [tag["score"] for tag in line["labels"]] == pytest.approx([tag.score for tag in tags], abs=1e-5)


class Seeds(Callback):
    """Notes what each epoch was seeded with."""

    seen: ClassVar[list[int]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.seen.append(torch.initial_seed())


def test_each_epoch_of_each_stage_has_a_seed_of_its_own(config, tmp_path):
    stages = "[{class_path: VisionStage, init_args: {epochs: 2}}, {class_path: PromptStage, init_args: {epochs: 2}}]"
    arguments = ["--model.stages", stages, "--trainer.callbacks+", "test_cli.Seeds"]
    Seeds.seen.clear()
    assert main(["fit", "--config", config, *SMALL, *arguments, "--trainer.default_root_dir", str(tmp_path)]) == 0
    assert len(Seeds.seen) == len(set(Seeds.seen)) == 4


def test_figures_of_each_evaluation_and_no_more_epochs_than_the_stage_has(config, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stages = "[{class_path: ovml.training.PromptStage, init_args: {epochs: 2}}]"
    arguments = ["--trainer.max_epochs", "9", "--trainer.log_every_n_steps", "1", "--model.stages", stages, "--plots"]
    assert main(["fit", "--config", config, *SMALL, *arguments, "--trainer.default_root_dir", str(tmp_path)]) == 0
    run = tmp_path / "version_0"
    said = capsys.readouterr().out
    assert f"run: {run}\n" in said
    assert f"--model {run}\n" in said
    assert torch.load(run / "prompt" / "last.ckpt", weights_only=True)["epoch"] == 1
    log = EventAccumulator(str(run / "prompt" / "log"), {"images": 0}).Reload()
    assert [event.step for event in log.Images("val/precision_recall")] == [3, 6]
    (rate,) = (name for name in log.Tags()["scalars"] if name.startswith("lr-"))
    assert len(log.Scalars(rate)) == 6
    assert main(["test", "--ckpt_path", str(run), "--plots"]) == 0
    assert f"figures: {run / 'test_plots'}" in capsys.readouterr().out
    for row in ("zero-shot", "prompt"):
        assert (run / "test_plots" / row / "precision_recall.png").is_file()


def test_tag_with_a_trained_model(run, picture, tmp_path, capsys):
    assert main(["tag", str(picture), "--labels", "red circle,blue star", "--model", str(run)]) == 0
    one = capsys.readouterr().out
    assert "red circle" in one
    assert "blue star" in one
    (tmp_path / "names.txt").write_text("green heart\nstar\nmoon\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (30, 30)).save(folder / name)
    arguments = ["--labels-file", str(tmp_path / "names.txt"), "--top-k", "2", "--model", str(run)]
    assert main(["tag", str(folder), str(picture), *arguments]) == 0
    table = capsys.readouterr().out
    assert table.index("a.jpg") < table.index("b.png") < table.index("picture.png")


def test_tag_uses_the_vocabulary_where_no_labels_are_given(run, picture, tiny, capsys):
    assert main(["tag", str(picture), "--model", str(run), "--top-k", "500"]) == 0
    assert "striped" in capsys.readouterr().out
    assert main(["tag", str(picture), "--model", tiny]) == 0
    assert "no labels given: --vocabulary everyday" in capsys.readouterr().err
    assert main(["tag", str(picture)]) == 2
    assert (
        "no labels: ovml-demo knows drawn shapes, and needs the names to choose from: --labels"
        in capsys.readouterr().err
    )


@pytest.fixture
def album(tmp_path):
    """A folder of six images and one that is none."""
    folder = tmp_path / "album"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "c.png", "d.png", "sub/e.png", "sub/f.png", "z.png")):
        Image.effect_mandelbrot((60, 50), (-2, -1.5, 1, 1), 10 + i).convert("RGB").save(folder / name)
    (folder / "b.png").write_text("no image")
    return folder


def test_tag_goes_on_after_an_image_that_cannot_be_read(album, tiny, capsys):
    command = ["tag", str(album), "--labels", "cat,dog", "--model", tiny, "--batch-size", "2", "--format", "table"]
    assert main(command) == 0
    done = capsys.readouterr()
    assert "b.png: not an image that Pillow can read" in done.out
    assert done.out.count("cat") == 6
    assert "1 of 7 images could not be read" in done.err


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_tag_writes_files(album, tiny, tmp_path, capsys, kind):
    out = tmp_path / f"tags.{kind}"
    command = ["tag", str(album), "--model", tiny, "--labels", "cat,dog,sky", "--top-k", "2", "--out", str(out)]
    assert main(command) == 0
    done = capsys.readouterr()
    assert done.out == ""
    assert re.search(rf"tags\.{kind}: 7 images, [\d.]+ images/s; 1 could not be read", done.err)
    rows = pandas.read_json(out, lines=True) if kind == "jsonl" else getattr(pandas, f"read_{kind}")(out)
    order = ["a.png", "b.png", "c.png", "d.png", "sub/e.png", "sub/f.png", "z.png"]
    assert list(rows["image"]) == [str(album / name) for name in order]
    assert list(rows["error"].notna()) == [name == "b.png" for name in order]
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0


def test_tag_reads_paths_from_a_file_or_from_standard_input(album, tiny, tmp_path, capsys, monkeypatch):
    paths = f"{album}/z.png\r\n\n{tmp_path}/none.png\n{album}/a.png"
    (tmp_path / "paths.txt").write_text(paths)
    command = ["tag", "--model", tiny, "--labels", "cat", "--format", "table", "--images-file"]
    assert main([*command, str(tmp_path / "paths.txt")]) == 0
    table = capsys.readouterr().out
    assert table.index("z.png") < table.index("none.png: no such file") < table.index("a.png")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(paths.encode())))
    assert main([*command, "-"]) == 0
    assert capsys.readouterr().out == table
    reader, writer = os.pipe()  # as `ovml tag --images-file <(find ...)` has it
    os.write(writer, paths.encode())
    os.close(writer)
    assert main([*command, f"/dev/fd/{reader}"]) == 0
    os.close(reader)
    assert capsys.readouterr().out == table


@pytest.mark.parametrize("out", [[], ["--out", "tags.csv"]])
def test_tag_of_nothing_but_broken_images_fails(tiny, tmp_path, capsys, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg"):
        Path(name).write_text("no image")
    assert main(["tag", "a.png", "b.jpg", "--model", tiny, "--labels", "cat", *out]) == 2
    assert "ovml: error: no image could be read, of 2; each has its reason beside it" in capsys.readouterr().err


def test_options_of_tag_are_those_of_the_tagger(album, tiny, tmp_path):
    """Each option by itself, against the same argument in Python."""
    labels, model, images = ["cat", "dog", "sky", "a", "b", "c"], load_model(tiny), [album / "a.png", album / "c.png"]
    scores = Tagger(model, labels).score(images)
    cases = {
        (): {},
        ("--top-k", "2"): {"top_k": 2},
        ("--threshold", f"{scores.median()}"): {"threshold": float(scores.median())},
        ("--prompt", "the {}"): {"prompt": "the {}"},
        ("--prompt", "the {}", "--prompt", "{} x"): {"prompt": ["the {}", "{} x"]},
        ("--batch-size", "1", "--num-workers", "0"): {"batch_size": 1, "num_workers": 0},
    }
    found = {}
    for options, arguments in cases.items():
        out = tmp_path / "tags.jsonl"
        command = ["tag", *map(str, images), "--model", tiny, "--labels", ",".join(labels), "--out", str(out)]
        assert main([*command, "--overwrite", *options]) == 0
        found[options] = [
            [(tag["label"], tag["score"]) for tag in json.loads(line)["labels"]] for line in out.open(encoding="utf-8")
        ]
        assert found[options] == [
            [(label, pytest.approx(score, abs=2e-6)) for label, score in tags]
            for tags in Tagger(model, labels, **arguments).predict(images)
        ]
    assert {len(tags) for tags in found[()]} == {5}
    assert found[("--prompt", "the {}")] != found[()]


def test_what_the_embedded_model_knows_is_said(picture, tiny, capsys):
    for options, said in (([], True), (["--model", "ovml-demo"], True), (["--model", tiny], False)):
        assert main(["tag", str(picture), "--labels", "heart", *options]) == 0
        assert ("knows drawn shapes only; for photographs give --model" in capsys.readouterr().err) == said


def test_one_image_that_cannot_be_read_is_an_error(album, tiny, capsys):
    assert main(["tag", str(album / "b.png"), "--model", tiny, "--labels", "cat"]) == 2
    assert "no image could be read, of 1" in capsys.readouterr().err


def test_tag_says_what_it_understood_and_what_it_passed_over(album, tiny, tmp_path, capsys):
    (tmp_path / "names.csv").write_text("id;name\n1;fish\n2;moon\n")
    (album / "notes.txt").write_text("")
    (album / ".hidden.png").write_text("")
    assert main(["tag", str(album), "--model", tiny, "--labels-file", str(tmp_path / "names.csv")]) == 0
    said = capsys.readouterr().err
    assert "ovml: 2 labels from names.csv, column 'name': fish, moon\n" in said
    assert re.search("passed over in folders: 1 (hidden|.txt), 1 (hidden|.txt)\n", said)


def test_an_interrupted_tag_goes_on_by_the_same_command(album, tiny, tmp_path, capsys, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "tags.jsonl"
    command = ["tag", str(album), "--model", tiny, "--labels", "cat,dog", "--batch-size", "2", "--prompt", "a {}"]
    assert main([*command, "--out", str(whole)]) == 0
    tag_row, seen = tag_output.tag_row, []

    def interrupted(*row):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(row)
        return tag_row(*row)

    monkeypatch.setattr(tag_output, "tag_row", interrupted)
    capsys.readouterr()
    assert main([*command, "--out", str(out)]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*command, "--out", str(out), "--threshold", "0"]) == 2
    assert "begun with another threshold" in capsys.readouterr().err
    monkeypatch.setattr("rich.progress.Task.elapsed", property(lambda _: 2.0))  # seconds
    assert main([*command, "--out", str(out)]) == 0
    assert "going on after 4 images" in (err := capsys.readouterr().err)
    assert "7 images (4 of them before), 1.5 images/s" in err
    assert [json.loads(line)["image"] for line in out.open()] == [json.loads(line)["image"] for line in whole.open()]


def test_tag_takes_labels_with_ids_and_a_threshold(picture, tiny, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("id,name\n/m/1,bank\n/m/2,cat\n/m/3,Bank\n")
    command = ["tag", str(picture), "--labels-file", str(tmp_path / "labels.csv"), "--model", tiny]
    command += ["--format", "table"]
    assert main(command) == 0
    assert "bank (/m/1)" in (table := capsys.readouterr().out)
    assert "Bank (/m/3)" in table
    assert main([*command, "--threshold", "9"]) == 0
    assert capsys.readouterr().out.split() == [str(picture), "no", "label"]


def test_help_and_version(capsys):
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        page = capsys.readouterr().out
        assert [line.split()[0] for line in page.splitlines() if re.match("  [a-z]", line)] == list(COMMANDS)
        assert all(f" {text}\n" in page for _, text in COMMANDS.values())
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ovml {metadata.version('ovml')}\n"


BAD = {
    "no such command": (["train"], "no command 'train'"),
    "no such configuration": (["fit", "--config", "none.yaml"], "none.yaml: no such file; .* demo.yaml"),
    "unknown key": (["fit", "--config", "{config}", "--config", "{unknown}"], "model.colour"),
    "unknown option": (["fit", "--config", "{config}", "--model.colour", "red"], "colour"),
    "unknown class": (["fit", "--config", "{config}", "--model.head", "ovml.heads.NoHead"], "NoHead"),
    "no such clip": (
        ["fit", "--config", "{config}", "--model.clip", "/no/clip"],
        "/no/clip: no such checkpoint here",
    ),
    "nothing to resume": (["fit", "--config", "{config}", "--ckpt_path", "last"], "no run to resume"),
    "no such run": (["test", "--ckpt_path", "/no/run"], "/no/run: not a run"),
    "wrong checkpoint": (["tag", "{picture}", "--labels", "a", "--model", "{text}"], "not a checkpoint"),
    "top_k": (
        ["fit", "--config", "{config}", "--model.head", "ovml.heads.LocalHead", "--model.head.top_k", "99"],
        "99",
    ),
    "missing image": (["tag", "{picture}", "none.png", "--labels", "a"], "none.png: no such file or folder"),
    "missing file of images": (
        ["tag", "--images-file", "none.txt", "--labels", "a"],
        "none.txt: cannot be",
    ),
    "no match": (["tag", "{picture}", "none*.png", "--labels", "a"], "no file fits this pattern"),
    "output": (["tag", "{picture}", "--labels", "a", "--out", "tags.xls"], r"tags\.xls: cannot tell what to write"),
    "output there": (["tag", "{picture}", "--labels", "a", "--out", "{there}"], "there.csv: exists already"),
    "top_k of tag": (["tag", "{picture}", "--top-k", "0"], "--top-k: must be at least 1; got 0"),
    "batch size of tag": (["tag", "{picture}", "--batch-size", "x"], "--batch-size: expected a whole number, got 'x'"),
    "template": (
        ["tag", "{picture}", "--labels", "a", "--model", "{tiny}", "--prompt", "a photo"],
        "template 'a photo' must hold",
    ),
    "no labels": (["tag", "{picture}", "--labels", " , "], "--labels: the list is empty"),
    "repeated labels": (
        ["tag", "{picture}", "--labels", "Red star,red  star"],
        "differ only in case or blanks",
    ),
    "label file": (["tag", "{picture}", "--labels-file", "none.txt"], "none.txt: cannot read the label file"),
    "no image given": (["tag", "--labels", "a"], "required: IMAGE"),
    "device": (
        ["tag", "{picture}", "--labels", "a", "--device", "abacus", "--model", "{tiny}"],
        "--device abacus",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_clear_line(case, config, tiny, picture, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "unknown.yaml").write_text("model: {colour: red}")
    places = {"config": config, "tiny": tiny, "picture": picture}
    (tmp_path / "there.csv").write_text("")
    places |= {
        name: tmp_path / f"{name}.{kind}" for name, kind in (("text", "png"), ("unknown", "yaml"), ("there", "csv"))
    }
    arguments, message = BAD[case]
    arguments = [a.format(**places) for a in arguments]
    if arguments[0] == "fit":
        arguments += [*SMALL, "--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ovml: error")]
    assert len(lines) == 1
    assert re.search(message, lines[0])


def test_the_process_itself_exits_with_two_and_no_traceback(picture):
    done = ovml("tag", str(picture), "--labels", "")
    assert done.returncode == 2
    assert done.stderr.strip() == "ovml: error: --labels: the list is empty; give at least one label name"


def test_importing_ovml_loads_nothing_heavy():
    code = (
        "import sys, ovml; print([m for m in ('torch', 'lightning', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_probabilities_are_fitted_in_fit_kept_in_the_run_and_judged_by_test(run, capsys):
    assert main(["test", "--ckpt_path", str(run), "--trainer.accelerator", "cpu"]) == 0
    rows = json.loads((run / "test_results.json").read_text())
    assert "calibration/ECE" not in rows["zero-shot"]
    assert 0 <= rows["prompt"]["calibration/ECE"] < 0.2
    assert 0 < rows["prompt"]["calibration/F1"] <= 1
    assert "ECE given" in capsys.readouterr().out
    kept = torch.load(run / "prompt" / "last.ckpt", weights_only=True)["ovml"]["calibration"]
    assert kept["slope"] > 0


def test_tag_gives_probabilities_and_those_above_the_models_own_threshold(run, picture, capsys):
    command = ["tag", str(picture), "--model", str(run), "--top-k", "500", "--format", "table"]
    assert main([*command, "--probabilities"]) == 0
    everything = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert all(0 <= p <= 1 for p in everything)
    assert main([*command, "--threshold", "calibrated"]) == 0
    given_out = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()[1:]]
    threshold = torch.load(run / "prompt" / "last.ckpt", weights_only=True)["ovml"]["calibration"]["threshold"]
    assert given_out == [p for p in everything if p >= threshold - 5e-5]
    assert main(["tag", str(picture), "--labels", "heart", "--probabilities"]) == 2
    assert "this model was never calibrated" in capsys.readouterr().err


def test_quiet_leaves_results_alone(picture, tmp_path):
    out = tmp_path / "tags.jsonl"
    command = ["tag", str(picture), "--labels", "heart", "--out", str(out)]
    assert "1 images" in ovml(*command).stderr
    quiet = ovml("--quiet", *command, "--overwrite")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert out.is_file()
    wrong = ovml(*command, "--quiet", "--threshold", "much")
    assert wrong.returncode == 2
    assert "expected a number or 'calibrated'" in wrong.stderr
