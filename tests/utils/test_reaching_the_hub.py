"""Names that are on the Hub, or cannot be."""

import socket

import pytest
from huggingface_hub import constants

from ovml import OVMultiLabelClassifier, UserError, load_model
from ovml.cli.main import main
from ovml.utils.hub import check_hub_name


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """A Hub that is not there; nothing was downloaded."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        yield tmp_path


@pytest.mark.parametrize("load", [OVMultiLabelClassifier, OVMultiLabelClassifier.from_pretrained, load_model])
def test_a_hub_that_cannot_be_reached_is_said_at_once(load, refused):
    with pytest.raises(UserError, match=r"some/clip: no such checkpoint here, and .* cannot be reached \(127.0.0.1: "):
        load("some/clip")


@pytest.mark.parametrize("command", [["tag", "a.png", "--model"], ["fit", "--config", "demo.yaml", "--model.clip"]])
def test_the_commands_say_it_too(command, refused, capsys):
    assert main([*command, "some/clip"]) == 2
    option = command[-1]
    assert f"ovml: error: {option}: some/clip: no such checkpoint here, and the Hugging" in capsys.readouterr().err
    assert main([*command, "ovml-dem"]) == 2
    assert f"{option}: ovml-dem: no such checkpoint here; did you mean ovml-demo? or give a" in capsys.readouterr().err


def test_what_is_here_or_was_downloaded_needs_no_hub(refused):
    check_hub_name("ovml-demo")
    check_hub_name(str(refused))
    (refused / "models--some--clip" / "snapshots").mkdir(parents=True)
    check_hub_name("some/clip")
    for path in ("./no/clip", "/no/clip", "a/b/c"):
        check_hub_name(path)  # who reads it says that there is no such folder


def test_a_hub_that_answers_is_asked(refused, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        check_hub_name("some/clip")
