"""Scripts that let a shell complete commands and options."""

import shutil
import subprocess

import pytest

from ovml.cli.main import COMMANDS, main

pytest.importorskip("shtab", reason="needs shtab")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "ovml.bash"
    with pytest.MonkeyPatch.context() as patch:
        written = []
        patch.setattr("builtins.print", lambda text, **_: written.append(text))
        assert main(["completion", "bash"]) == 0
    path.write_text("\n".join(written))
    return path


def completed(script, *words):
    """What bash offers after these words."""
    line = (
        f'source "$0"; COMP_WORDS=("$@"); COMP_CWORD={len(words) - 1}; _shtab_ovml; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", line, str(script), *words], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_offers_commands_options_and_choices(script):
    assert set(completed(script, "ovml", "")) == set(COMMANDS)
    assert completed(script, "ovml", "--ver") == ["--version"]
    assert completed(script, "ovml", "tag", "--labels-") == ["--labels-file"]
    assert completed(script, "ovml", "fit", "--trainer.max_ep") == ["--trainer.max_epochs"]
    assert "--model.head" in completed(script, "ovml", "fit", "--model.")
    assert set(completed(script, "ovml", "prepare", "")) >= {"nuswide", "openimages"}
    assert completed(script, "ovml", "prepare", "nuswide", "--veri") == ["--verify"]


def test_other_shells_are_said_in_one_line(capsys):
    assert main(["completion", "fishy"]) == 2
    assert "invalid choice: 'fishy'" in capsys.readouterr().err
