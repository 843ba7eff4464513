"""Options out of range are refused by every data module when it is made."""

import inspect
import math
import re

import pytest

import ovml.data
from ovml.cli.main import main
from ovml.data import (
    DemoDataModule,
    DividedDataModule,
    FolderDataModule,
    HubDataModule,
    JSONDataModule,
    MultiLabelDataModule,
    OpenImagesDataModule,
)
from ovml.utils.errors import UserError

BASES = (MultiLabelDataModule, FolderDataModule, DividedDataModule)
MODULES = [
    module
    for module in vars(ovml.data).values()
    if inspect.isclass(module) and issubclass(module, MultiLabelDataModule) and module not in BASES
]
NEEDED = {
    HubDataModule: {"path": "set"},
    JSONDataModule: {"root": "/", "train_file": "a.json", "gzsl_file": "b.json"},
    OpenImagesDataModule: {"root": "/"},
    DemoDataModule: {},
    **{module: {"root": "/"} for module in MODULES if module.__module__.startswith("ovml.data.divided")},
}
NEEDED |= {module: {"root": "owner/name"} for module in MODULES if module not in NEEDED}

FROM_ONE, FROM_ZERO = [0, -1, -5, 1.5, True, math.nan, 10**30], [-1, 0.5, False, math.nan, 10**30]
BAD = {
    "crop_scale": [(-1, 2), (0.9, 0.1), (0, 1), (0.5, 1.5), (math.nan, 1), (0.5, math.nan)],
    **{name: [-1, 1.01, math.nan] for name in ("max_missing", "flip", "cutout")},
    "partition": [*FROM_ZERO, 5],
    "test_share": [-1, 0, 1, 1.5, math.nan],
    **dict.fromkeys(("num_workers", "seed", "scene_seed", "unseen_seed", "shuffle_buffer"), FROM_ZERO),
}


def parameters(module):
    """Parameters of a class and of those that its `kwargs` go to."""
    found = {}
    for base in module.__mro__:
        if issubclass(base, MultiLabelDataModule) and "__init__" in vars(base):
            found |= {**inspect.signature(base).parameters, **found}
    return found


def numeric(module):
    return [name for name, p in parameters(module).items() if name in BAD or "int" in str(p.annotation).split(" | ")]


CASES = [(module, name) for module in MODULES for name in numeric(module)]


def test_the_matrix_is_large():
    assert len(MODULES) == 12
    assert {name for _, name in CASES} >= {
        *("batch_size", "eval_batch_size", "num_workers", "seed", "crop_scale", "max_missing", "validation_size"),
        *("train_size", "eval_size", "scene_seed", "num_unseen", "min_train_images", "streamed_rows", "shuffle_buffer"),
        *("shots", "unseen", "unseen_seed", "partition", "test_share"),
    }


@pytest.mark.parametrize(("module", "name"), CASES)
def test_options_out_of_range_are_refused_in_one_line(module, name):
    for value in BAD.get(name, FROM_ONE):
        with pytest.raises(UserError, match=rf"^{module.__name__}: {name} must be") as caught:
            module(**NEEDED[module], **{name: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"), [("crop_scale", "[0.9, 0.1]"), ("eval_batch_size", "0"), ("seed", "-1"), ("train_size", "0")]
)
def test_the_command_line_refuses_them_in_one_line(option, value, config, tmp_path, capsys):
    arguments = ["fit", "--config", config, "--trainer.default_root_dir", str(tmp_path), f"--data.{option}", value]
    assert main(arguments) == 2
    assert re.fullmatch(rf"ovml: error: .*{option} must be .*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
