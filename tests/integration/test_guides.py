"""The code of the guides runs from top to bottom, on less data."""

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ovml.cli.main import main

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"(<!-- not run: needs \w+ -->\n)?```(python|sh|yaml)\n(.*?)```", re.DOTALL)
SMALL = ["--data.train_size=16", "--data.eval_size=8", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]


def commands(code):
    """The lines of a shell's code, those of a loop for its first two values."""
    code = re.sub(r" \\\n +", " ", code)
    if loop := re.fullmatch(r"for (\w+) in ([\w. ]+); do\n(.*)done\n", code, re.DOTALL):
        for value in loop[2].split()[:2]:
            yield from commands(loop[3].replace(f"${loop[1]}", value))
    else:
        yield from (shlex.split(line) for line in code.splitlines())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a guide in an empty folder; returns the names that its Python leaves."""
    monkeypatch.chdir(tmp_path)

    def run(guide):
        names = {}
        for not_run, language, code in BLOCK.findall((DOCS / f"{guide}.md").read_text()):
            if language == "python":
                small = code.replace("train_size=256, eval_size=100", "train_size=16, eval_size=8")
                exec(small.replace("range(50)", "range(8)"), names)
            elif language == "yaml":
                Path(code.split()[1]).write_text(code)  # the first line is a comment that names the file
            elif not not_run:
                for command in commands(code):
                    if command[0] == "ovml":
                        assert main([*command[1:], *SMALL]) == 0
        return names

    return run


def test_own_trainer(run):
    names = run("trainer")
    assert Path("runs/mine/version_1/prompt/last.ckpt").is_file()
    assert Path("my-model/config.json").is_file()
    assert names["step"].isfinite()


def test_sweeps_and_loggers(run, monkeypatch, capsys):
    tried = []
    trial = SimpleNamespace(suggest_float=lambda name, low, high, log: low)
    study = SimpleNamespace(optimize=lambda objective, n_trials: tried.append(objective(trial)), best_params={})
    monkeypatch.setitem(sys.modules, "optuna", SimpleNamespace(create_study=lambda direction: study))
    run("sweeps")
    assert ", 2 seeds" in capsys.readouterr().out
    assert [0 < value < 1 for value in tried] == [True]
    assert Path("runs/demo/version_0/vision/log/metrics.csv").is_file()
    assert list(Path("runs/demo/version_0/vision/log").glob("events.*"))
    written = {
        f"{path.parent.parent.name} {path.parent.name[-1]}": path.name[:6] for path in Path("logs").glob("*/*/[me]*")
    }
    own = {f"{name} {stage}": kind for name, kind in (("csv", "metric"), ("tensorboard", "events")) for stage in (0, 1)}
    one = {f"lightning_logs {i}": kind for i, kind in enumerate(["metric", "metric", "events", "events", "metric"])}
    assert written == own | one


def test_notebooks(run):
    names = run("notebooks")
    assert {"precision_recall", "labels", "scores"} <= set(names["figures"])
    assert len(names["logs"]["train/loss"].dropna()) == 1
