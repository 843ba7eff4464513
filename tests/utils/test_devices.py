import pytest
import torch

from ovml import UserError
from ovml.cli.command import PRECISIONS
from ovml.utils.devices import DTYPES, best_device, choose_device, choose_precision, precision_name


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False,) * 2 + ("cpu",)],
)
def test_the_fastest_device_that_is_here_is_taken(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert best_device() == expected


@pytest.mark.parametrize("name", ["abacus", "cuda:77", "cpu:x"])
def test_a_device_that_is_not_here_is_one_line(name):
    with pytest.raises(UserError, match=rf"device {name}: not usable here \(.*\); try cpu") as raised:
        choose_device(name)
    assert "\n" not in str(raised.value)


def test_auto_takes_half_precision_where_a_gpu_multiplies_it(monkeypatch):
    found = {}
    for able in (True, False):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, able=able: able)
        found[able] = choose_precision("auto", torch.device("cuda"))
    assert found == {True: torch.bfloat16, False: torch.float16}
    assert {choose_precision("auto", torch.device(kind)) for kind in ("mps", "cpu")} == {torch.float32}


def test_precisions_have_the_names_of_the_command_line():
    assert ("auto", *DTYPES) == PRECISIONS
    for name, dtype in DTYPES.items():
        assert choose_precision(name, torch.device("cpu")) == dtype
        assert precision_name(dtype) == name
    with pytest.raises(UserError, match="precision must be one of auto, float32, bf16, fp16; got 'bf17'"):
        choose_precision("bf17", torch.device("cpu"))
