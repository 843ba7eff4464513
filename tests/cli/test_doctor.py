"""`ovml doctor`, in a process of its own."""

import os
import subprocess
import sys

import pytest
import torch

from ovml import __version__
from ovml.cli.doctor import NEEDED, OPTIONAL, checks, print_checks, without_home
from ovml.cli.main import main
from ovml.training.precision import multiplies_bfloat16

RUN = "import sys; from ovml.cli.main import main; sys.exit(main(['doctor', *sys.argv[1:]]))"
NO_NETWORK = "import socket; socket.socket.connect = socket.getaddrinfo = None\n"


def run(code, *arguments, **environment):
    environment = {**os.environ, **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def done():
    """All is well, offline, with a name in the home folder's path."""
    return run(NO_NETWORK + RUN, "--all", HF_HUB_OFFLINE="1", HF_HOME="/nowhere/hf", HOME=sys.prefix)


def test_every_line_is_a_name_and_a_value(done):
    assert done.returncode == 0, done.stdout + done.stderr
    ours = done.stdout.partition("environment: ")[0]
    found = dict(line.split(": ", 1) for line in ours.splitlines())
    for names, packages in (("packages", NEEDED), ("optional packages", OPTIONAL)):
        assert [package.split(" ", 1)[0] for package in found[names].split(", ")] == list(packages)
    assert f"torch {torch.__version__}" in found["packages"]
    assert found["devices"].endswith(" threads)")
    assert done.stderr.splitlines()[-1] == "ovml: all works"
    assert found["ovml"].startswith(__version__)
    assert found["hf offline"].startswith("HF_HUB_OFFLINE=1,")
    assert found["hf cache"].startswith("/nowhere/hf/hub, ")
    assert found["hf cache"].endswith("GiB free")
    assert found["embedded model"].startswith("ovml-demo finds the purple square")
    assert found["bfloat16 on cpu"].startswith("fast" if multiplies_bfloat16() else "slow")
    assert all(found.values())


def test_a_screen_holds_what_one_needs(monkeypatch, capsys):
    monkeypatch.setattr("ovml.cli.doctor._embedded_model", lambda: "fine")
    assert main(["doctor"]) == 0
    printed, said = capsys.readouterr()
    names = [line.partition(": ")[0] for line in printed.splitlines()]
    assert names[:3] == ["ovml", "embedded model", "devices"]
    assert len(names) <= 10
    assert said.splitlines()[-1] == "ovml: all works; for a bug report: ovml doctor --all"


def test_each_broken_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr("ovml.cli.doctor.NEEDED", ("numpy", "no_such", "neither"))
    found = dict(checks())
    broken = print_checks(iter([("packages", found["packages"])]))
    printed = capsys.readouterr().out
    assert broken == ["packages"]
    assert "no_such: ModuleNotFoundError: " in printed
    assert "neither: ModuleNotFoundError: " in printed


def test_the_environment_is_torchs(done):
    environment = done.stdout.partition("environment: ")[2]
    assert f"PyTorch version: {torch.__version__}" in environment
    for text in ("OS: ", "Python version: ", "Is CUDA available: ", "CPU:"):
        assert text in environment
    assert "Vulnerability" not in environment
    assert sys.prefix + os.sep not in done.stdout


def test_without_the_weights_it_exits_with_1():
    code = "import ovml.encoders.checkpoints as c; c.checkpoint_path = lambda name: '/nowhere'\n"
    failed = run(NO_NETWORK + code + RUN)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1] == "ovml: broken: embedded model"
    assert "embedded model: broken (" in failed.stdout
    assert "Traceback" not in failed.stderr


def test_a_line_that_breaks_is_one_line_and_the_others_come(capsys):
    def fails():
        raise OSError("cannot\nload")

    assert print_checks(iter([("a", fails), ("b", lambda: "fine")])) == ["a"]
    assert capsys.readouterr().out == "a: broken (OSError: cannot load)\nb: fine\n"


def test_the_home_folder_is_not_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert without_home(f"in {tmp_path / 'x'}") == f"in ~{os.sep}x"
