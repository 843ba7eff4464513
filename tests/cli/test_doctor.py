"""`ovml doctor`, in a process of its own."""

import os
import subprocess
import sys

import pytest

from ovml import __version__
from ovml.cli import doctor as cli_doctor
from ovml.cli.doctor import NEEDED, OPTIONAL, print_lines, without_home
from ovml.training.precision import multiplies_bfloat16

RUN = "from ovml.cli.doctor import doctor; doctor(['doctor'])"
NO_NETWORK = "import socket; socket.socket.connect = socket.getaddrinfo = None\n"


def run(code, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def done():
    """All is well, offline, with a name in the home folder's path."""
    return run(NO_NETWORK + RUN, HF_HUB_OFFLINE="1", HF_HOME="/nowhere/hf", HOME=sys.prefix)


def test_every_line_is_a_name_and_a_value(done):
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert {*NEEDED, *OPTIONAL, "ovml", "python", "platform", "cpu cores", "memory", "cuda", "mps"} <= set(found)
    assert found["ovml"].startswith(__version__)
    assert found["hf offline"] == "yes (HF_HUB_OFFLINE=1)"
    assert found["hf cache"] == "/nowhere/hf/hub"
    assert found["embedded weights"].startswith("ovml-demo loads")
    assert found["embedded model"].startswith("finds the purple square")
    assert found["free at hf cache"].endswith("GiB")
    assert found["torch threads"].split()[0].isdecimal()
    assert found["bfloat16 on cpu"].startswith("fast" if multiplies_bfloat16() else "slow")
    assert all(found.values())


def test_without_the_weights_it_exits_with_1():
    code = "import ovml.encoders.checkpoints as c; c.checkpoint_path = lambda name: '/nowhere'\n"
    failed = run(NO_NETWORK + code + RUN)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1] == "ovml: broken: embedded weights, embedded model"
    assert "embedded weights: broken (" in failed.stdout
    assert "Traceback" not in failed.stderr


def test_a_line_that_breaks_is_one_line_and_the_others_come(capsys):
    def fails():
        raise OSError("cannot\nload")

    assert print_lines(iter([("a", fails), ("b", lambda: "fine")])) == ["a"]
    assert capsys.readouterr().out == "a: broken (OSError: cannot load)\nb: fine\n"


def test_the_home_folder_is_not_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert without_home(f"in {tmp_path / 'x'}") == f"in ~{os.sep}x"


@pytest.mark.parametrize(("value", "is_on"), [("1", "yes"), ("true", "yes"), ("0", "no"), ("", "no")])
def test_offline_mode_is_read_as_the_hub_reads_it(monkeypatch, value, is_on):
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert cli_doctor._offline().startswith(is_on)
