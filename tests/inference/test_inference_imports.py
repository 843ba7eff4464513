"""Commands that need only a model import no package of training or evaluation."""

import json
import os
import subprocess
import sys

import pytest

from ovml import OpenVocabularyModel
from ovml.saving import save_model

SLOW = {"lightning", "pytorch_lightning", "torchmetrics", "datasets", "scipy", "matplotlib"}
REPORT = """
import json, sys
{code}
print("\\n" + json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
RUN = """
from ovml.cli.main import main
for command in {commands!r}:
    assert main(command) == 0
"""
COMMANDS = {
    "tag": [["tag", "{picture}"], ["tag", "{picture}", "--out", "{folder}/tags.csv"]],
    "explain": [["explain", "{picture}", "--out", "{folder}/why.png"]],
    "embed-labels": [["embed-labels", "--out", "{folder}/labels.safetensors"]],
    "export": [["export", "--out", "{folder}/model.pt2"]],
}


def modules_after(code):
    """Top-level modules that a process has loaded when it has run some code."""
    command = [sys.executable, "-c", REPORT.format(code=code)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def unavoidable():
    """What `CLIPModel` itself imports: transformers imports SciPy if it is installed."""
    return modules_after("from transformers import CLIPModel")


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(OpenVocabularyModel(tiny, ["cat", "dog"]), folder)
    return str(folder)


@pytest.mark.parametrize("commands", COMMANDS.values(), ids=COMMANDS)
def test_a_command_imports_only_what_it_needs(commands, saved, picture, tmp_path, unavoidable):
    places = {"picture": picture, "folder": tmp_path}
    filled = [[*(part.format(**places) for part in command), "--model", saved] for command in commands]
    loaded = modules_after(RUN.format(commands=filled))
    assert {"ovml", "torch", "transformers"} <= loaded
    assert not (loaded & SLOW) - unavoidable
