"""What is part of the package beside its code."""

import pytest

from ovml.utils.errors import UserError
from ovml.utils.resources import RESOURCES, config_path


def test_a_configuration_of_ones_own_goes_before_a_shipped_one_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path("demo.yaml") == str(RESOURCES / "configs" / "demo.yaml")
    (tmp_path / "demo.yaml").write_text("model: {}")
    assert config_path("demo.yaml") == "demo.yaml"
    with pytest.raises(
        UserError, match=r"config none\.yaml: no such file; give a path or one .*best\.yaml, .*demo\.yaml"
    ):
        config_path("none.yaml")
