"""Every line of code in the README runs: its models and photographs are replaced by small ones, nothing else."""

import re
import shlex
from pathlib import Path

import pytest
from commands import SMALL, one_thread
from data import fake_nuswide
from PIL import Image

from ovml.cli.main import main

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"^(<!-- [\w-]+ -->\n)?```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
LINES = [
    line.split("#")[0].strip()
    for mark, language, block in BLOCKS
    if language == "sh" and not mark
    for line in block.splitlines()
]
ELSEWHERE = {"ovml app": "test_app.py", "pip install": "no test installs packages"}
"""Lines whose test is elsewhere: a server, an installation. `.ci/run` runs the marked ones."""
RUN = [line for line in LINES if not line.startswith(tuple(ELSEWHERE))]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny, config):
    """A folder with what the README names: photographs, a table of their labels, two runs, NUS-WIDE."""
    folder = tmp_path_factory.mktemp("readme")
    photos = folder / "photos"
    photos.mkdir()
    labels = ["palm", "black cat", "sea", "sand", "dog"]
    rows = []
    for number in range(30):
        Image.effect_mandelbrot((64, 48), (-2, -1.5, 1 + number / 30, 1.5), 30).convert("RGB").save(
            photos / f"{number}.jpg"
        )
        rows.append(f"{number}.jpg,{labels[number % 5]};{labels[(number + 1) % 5]}\n")
    (photos / "labels.csv").write_text("file,labels\n" + "".join(rows))
    Image.open(photos / "3.jpg").save(folder / "photo.jpg")
    (folder / "nuswide").mkdir()
    truth = fake_nuswide.make_truth()
    fake_nuswide.write_official(folder / "nuswide", truth)
    fake_nuswide.write_pictures(folder / "nuswide", truth)
    for seed in ("0", "1"):
        fit = ["fit", "--config", config, *SMALL, "--seed_everything", seed, "--trainer.max_epochs", "1"]
        with one_thread():
            assert main([*fit, "--trainer.default_root_dir", str(folder / "runs")]) == 0
    return folder


def small(line, tiny):
    """The arguments of a line, with what stands in for models, runs and large data sets."""
    line = line.replace("RUN RUN", "runs/version_0 runs/version_1").replace("RUN", "runs/version_0")
    line = line.replace("/data/NUS-WIDE", "nuswide").replace("openai/clip-vit-base-patch16", tiny)
    arguments = shlex.split(line)[1:]
    if arguments[0] == "fit":
        arguments += ["--model.clip", tiny, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
        arguments += ["--data.num_workers", "0", "--data.cache_dir", "cache", "--model.ks", "[1]"]
        if "nuswide.yaml" in arguments:
            arguments += ["--model.head.top_k", "3"]
    return arguments


def test_the_readme_has_lines_to_run():
    assert len(RUN) > 8
    assert {"tag", "fit", "explain", "export", "compare"} <= {line.split()[1] for line in RUN}


@pytest.mark.parametrize("line", RUN)
def test_lines_run(line, place, tiny, monkeypatch, capsys):
    monkeypatch.chdir(place)
    if " export " in line:
        pytest.importorskip("onnxscript", reason="ONNX is not installed: pip install 'ovml[export]'")
    assert main(small(line, tiny)) == 0, capsys.readouterr().err


def test_the_output_that_is_shown_is_that_of_the_command(monkeypatch, capsys):
    ((block,),) = [[text] for _, language, text in BLOCKS if language == "console"]
    command, *shown = block.splitlines()
    monkeypatch.chdir(Path(__file__).parents[2])
    assert main([*shlex.split(command.removeprefix("$ "))[1:], "--format", "table"]) == 0
    printed = capsys.readouterr().out.splitlines()
    numbers = re.compile(r"\d\.\d{4}")
    assert [numbers.sub("", line) for line in printed] == [numbers.sub("", line) for line in shown]
    found, expected = ([float(x) for x in numbers.findall("\n".join(lines))] for lines in (printed, shown))
    assert found == pytest.approx(expected, abs=0.01)  # other processors differ in the last digits


@pytest.mark.parametrize("number", range(sum(language == "python" for _, language, _ in BLOCKS)))
def test_python_runs(number, place, tiny, monkeypatch, capsys):
    monkeypatch.chdir(place)
    code = [text for _, language, text in BLOCKS if language == "python"][number]
    names = {}
    exec(code.replace("openai/clip-vit-base-patch16", tiny), names)
    printed = capsys.readouterr().out
    assert "predict_labels" not in code or len(re.findall(r"^-?\d\.\d\d  \w+", printed, re.MULTILINE)) == 3
    if "BestPatch" in names:
        from ovml import OVMultiLabelClassifier

        model = OVMultiLabelClassifier(tiny, ["sea", "sand"], head=names["BestPatch"](), stages=[])
        assert len(model.eval().predict_labels("photo.jpg")) == 2
