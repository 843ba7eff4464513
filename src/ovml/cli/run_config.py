"""The configuration in a run's folder: what it may name, and whether a resumed run keeps to it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._common import parsing_settings  # to restore them: jsonargparse has no way back
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from ovml.cli.settings import MACHINE_ONLY, MOST_CONFIG_NODES, check_config
from ovml.data.ram_augmentation import Augmentation
from ovml.utils.errors import UserError, beginning
from ovml.utils.files import read_text
from ovml.utils.parts import Part, defines
from ovml.utils.yaml import load_yaml

OWN = ("ovml", "lightning")
"""Packages whose classes a run's configuration may name."""
BASES = (Part, LightningDataModule, Augmentation, Callback, Logger)
"""Classes from other packages that it may name are subclasses of these."""

MAY_DIFFER = MACHINE_ONLY | {
    "model.attn_implementation",
    "model.compile",
    "model.gradient_checkpointing",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.plugins",
    "trainer.strategy",
    "trainer.sync_batchnorm",
}
"""Settings that may change when a run is resumed: of the machine, of evaluation's speed, of what is logged."""

# Never run functions that a configuration names, such as os.system; never make classes where any value will do.
set_parsing_settings(import_path_denylist=[], instantiate_subclass_spec_in_any=False)


@contextmanager
def current_folder() -> Iterator[None]:
    """Within the block modules in the current folder are found, after all others: the user has named them.

    Afterwards the folder stays on the path only if one of its modules was imported, for what that imports later, and
    for other processes. Else what strangers' models name would be looked for in it, and a folder that was downloaded
    together with a model would run as code. A configuration that is not typed but read from a run's folder is therefore
    read without this.
    """
    here = os.getcwd()
    before = set(sys.modules)
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        new = {name: sys.modules[name] for name in set(sys.modules) - before}
        if not any(_is_module_in(here, name, module) for name, module in new.items()):
            sys.path.remove(here)


def _is_module_in(folder: str, name: str, module: ModuleType) -> bool:
    """Whether a module was found in a folder on the path, rather than in a package folder somewhere below it."""
    place = os.path.join(folder, *name.split("."))
    return getattr(module, "__file__", None) in (f"{place}.py", os.path.join(place, "__init__.py"))


@contextmanager
def known_classes_only(config: Path, argv: Sequence[str] = ()) -> Iterator[None]:
    """Within the block only known classes are imported: a run's folder may come from anywhere.

    Of what the configuration names these are ovml's and Lightning's own classes, and subclasses of `BASES` whose module
    says in its source that it defines them. Functions are never among them. The command line may name any package.

    Args:
        config: The `config.yaml` of the run.
        argv: The command line.

    Raises:
        UserError: The configuration names something else.
    """
    before = dict(parsing_settings)
    named = {path: _class_at(path) for path in _dotted_names(config)}
    allowed = {*OWN, *_named_packages(argv)}  # bare names, and those on the command line
    for path, cls in named.items():
        if cls is not None:
            allowed |= {path, f"{cls.__module__}.{cls.__qualname__}"}
    denied = [path for path, cls in named.items() if cls is None]
    set_parsing_settings(import_path_denylist=["*", *denied], import_path_allowlist=sorted(allowed))
    try:
        yield
    except ValueError as error:
        if found := re.search(r"Importing '([\w.]+)' is not allowed", str(error)):
            raise UserError(
                f"{config}: names {found[1]}, which is not a part, a data module, a callback or a logger of a module "
                f"here; if you trust this run, give its configuration too: --config {config}"
            ) from error
        raise
    finally:
        parsing_settings.update(before)


def _class_at(path: str) -> type | None:
    """The class at an import path, if making it is harmless."""
    module, _, name = path.rpartition(".")
    if not defines(module, name):
        return None
    try:
        cls = getattr(import_module(module), name)
    except Exception:  # a module of the user's may raise any; the parser says which class is missing
        return None
    is_known = isinstance(cls, type) and (issubclass(cls, BASES) or cls.__module__.partition(".")[0] in OWN)
    return cls if is_known else None


def _dotted_names(config: Path) -> set[str]:
    """All texts in a YAML file that look like import paths."""
    found: set[str] = set()
    left = [load_yaml(read_text(config, "configuration", "YAML"), MOST_CONFIG_NODES)]
    while left:
        value = left.pop()
        if isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value):
            found.add(value)
        elif isinstance(value, (dict, list)):
            left += value.values() if isinstance(value, dict) else value
    return found


def _named_packages(argv: Sequence[str]) -> set[str]:
    """Packages of the classes that the command line names."""
    found: set[str] = set()
    for option, following in zip(argv, [*argv[1:], ""]):  # noqa: B905 - one longer if there is none
        if option.startswith(("--model", "--data", "--trainer")):
            value = option.partition("=")[2] or following
            found |= set(re.findall(r"(?<![\w./~-])([A-Za-z_]\w*)(?=\.[A-Za-z_])", value))
    return found


def check_same_settings(parser: LightningArgumentParser, own: Path, given: Namespace, trusted: bool) -> None:
    """Check that a run is resumed with its own settings, but for those in `MAY_DIFFER` and callbacks without a state.

    Args:
        parser: Of `ovml fit`.
        own: The `config.yaml` of the run.
        given: The parsed configuration and options.
        trusted: Whether the run's configuration may name anything.

    Raises:
        UserError: A setting differs.
    """
    check_config(own)
    with nullcontext() if trusted else known_classes_only(own):
        before = parser.parse_path(str(own))
    if difference := _difference(_plain(parser, before), _plain(parser, given)):
        name, *values = difference
        of_run, now = map(_short, values)
        raise UserError(
            f"{name}: {now} was given, the run has {of_run}; resume it by 'ovml fit --ckpt_path {own.parent}' alone, "
            "or leave --ckpt_path out to start another run"
        )


def _plain(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """A configuration as plain data, with all defaults."""
    plain: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_unset=False))
    callbacks = plain["trainer"].get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    plain["trainer"]["callbacks"] = [callback for callback in callbacks if _has_state(callback["class_path"])]
    return plain


def _has_state(path: str) -> bool:
    """Whether checkpoints keep something of a callback, so that training depends on it; it is imported already."""
    module, _, name = path.rpartition(".")
    cls = getattr(import_module(module), name)
    return not issubclass(cls, Checkpoint) and cls.state_dict is not Callback.state_dict


def _difference(own: Any, given: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The name of the first setting that differs, and both values."""
    if name in MAY_DIFFER or own == given or _is_path(own, given):
        return None
    if isinstance(own, list) and isinstance(given, list) and len(own) == len(given):
        own, given = (dict(enumerate(values)) for values in (own, given))
    if not (isinstance(own, dict) and isinstance(given, dict)) or own.get("class_path") != given.get("class_path"):
        return name, own, given
    for key in sorted(own.keys() | given.keys(), key=str):
        inner = name if key == "init_args" else f"{name}.{key}".lstrip(".")
        if (found := _difference(own.get(key), given.get(key), inner)) is not None:
            return found
    return None


def _is_path(own: Any, given: Any) -> bool:
    """Whether two texts are the same path."""
    return isinstance(own, str) and isinstance(given, str) and Path(own).absolute() == Path(given).absolute()


def _short(value: Any) -> str:
    """A setting on part of a line: of classes their names.

    >>> _short([{"class_path": "ovml.training.VisionStage", "init_args": {}}, 2])
    '[VisionStage, 2]'
    """
    if isinstance(value, list) and value:
        return f"[{', '.join(map(_short, value))}]"
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return beginning("its default" if value is None else "none" if value == [] else str(value))
