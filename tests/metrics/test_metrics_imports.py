"""What importing a part of the metrics loads: `ovml tag` needs a calibration, and no torchmetrics."""

import json
import subprocess
import sys

import pytest

import ovml.metrics

HEAVY = {"torchmetrics", "lightning", "datasets", "scipy", "matplotlib", "pandas", "rich"}


@pytest.mark.parametrize(
    "statement",
    [
        "import ovml.metrics",
        "import ovml.metrics.calibration",
        "import ovml.metrics.protocols",
        "import ovml.metrics.tables",
        "import ovml.metrics.plots.files",
        "from ovml.metrics.calibration import Calibration",
        "from ovml.metrics import Calibration, EvaluationProtocol, ScoreCounts, TextLabels",
    ],
)
def test_light_parts_load_no_heavy_package(statement):
    code = f"{statement}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & {name.split(".")[0] for name in json.loads(found.stdout)}


def test_every_public_name_is_there_and_known_to_type_checkers():
    stub = (ovml.metrics.__file__ or "") + "i"
    with open(stub) as file:
        text = file.read()
    for name in ovml.metrics.__all__:
        home = getattr(ovml.metrics, name).__module__
        assert f"from {home} import {name} as {name}\n" in text
    assert text.count("import") == len(ovml.metrics.__all__)
    assert dir(ovml.metrics) == ovml.metrics.__all__
    with pytest.raises(AttributeError, match=r"'ovml.metrics' has no attribute 'Protocol'"):
        ovml.metrics.Protocol  # noqa: B018
