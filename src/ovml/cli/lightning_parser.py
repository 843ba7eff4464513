"""The parser of Lightning's commands: bare names of ovml's classes, checked YAML, errors that name options."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import get_loader, set_loader
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

import ovml.data
from ovml.classifier import OVMultiLabelClassifier
from ovml.cli.command import with_flags
from ovml.cli.parsing import UserErrors
from ovml.cli.settings import MOST_CONFIG_NODES
from ovml.encoders.image_processor import Preprocessing
from ovml.utils.errors import UserError, causes, one_line
from ovml.utils.yaml import check_yaml

ROOMS = "data", "distillation", "heads", "losses", "metrics", "prompts", "training", "training.callbacks"
"""Packages of ovml whose classes may be named without their module."""

# jsonargparse looks bare names such as `LocalHead` up among imported classes.
for _room in (import_module(f"ovml.{name}") for name in ROOMS):
    for _name in _room.__all__:
        getattr(_room, _name)


class LightningParser(UserErrors, LightningArgumentParser):
    """LightningCLI's parser, whose errors are one line; options cannot be abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})


def _checked_yaml(text: str) -> Any:
    check_yaml(text, MOST_CONFIG_NODES)
    return _load_yaml(text)


# Every configuration and value in YAML that jsonargparse loads is checked.
_load_yaml = get_loader("yaml")
set_loader("yaml", _checked_yaml, (yaml.YAMLError,))


def user_error(error: ValueError) -> UserError | None:
    """The `UserError` inside of an error, with options for arguments; `None` for other errors.

    The parser tries one type after another and wraps what it caught.
    """
    found = next((cause for cause in causes(error) if isinstance(cause, UserError)), None)
    return None if found is None else UserError(with_flags(one_line(found), _flags()))


def _flags() -> dict[str, str]:
    """The options of arguments, which errors name as `root` or `data.root`."""
    modules = [getattr(ovml.data, name) for name in ovml.data.__all__ if name.endswith("DataModule")]
    groups: dict[str, list[type]] = {"trainer": [Trainer], "model": [OVMultiLabelClassifier], "data": modules}
    groups["model.preprocessing"] = [Preprocessing]
    flags: dict[str, str] = {}
    for group, classes in groups.items():
        for name in (name for cls in classes for name in inspect.signature(cls).parameters):
            flags |= dict.fromkeys((name, f"{group}.{name}"), f"--{group}.{name}")
    return flags | {"clip": "--model.clip"}  # which data.clip follows
