"""Parts as plain data: class path and constructor arguments of a head, prompt learner, loss, distillation, stage."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ovml.heads import Head
from ovml.saving.checkpoint import is_plain, signature
from ovml.utils.errors import UserError


def describe(part: Any, base: type) -> dict[str, Any]:
    """What `build` needs to make a part again.

    Constructor arguments are read from the public attributes of the same names, and the result is tried out: a part
    that cannot be made again from it is an error here, not when the file is loaded. Weights are not described.

    Args:
        part: An instance of a subclass of `base`.
        base: One of ovml's abstract base classes.

    Returns:
        `{"class_path": str, "init_args": {name: plain value}}`.

    Raises:
        UserError: The class cannot be imported by name, or an argument cannot be read back.

    Example:
        >>> from ovml.heads import Head, LocalHead
        >>> describe(LocalHead(top_k=2), Head)
        {'class_path': 'ovml.heads.local.LocalHead', 'init_args': {'top_k': 2}}
    """
    cls = type(part)
    path = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ == "__main__" or "." in cls.__qualname__:
        raise UserError(f"{path}: a saved model names its parts' classes; define this one at the top of a module")
    description = {"class_path": path, "init_args": _init_args(part)}
    again = build(description, base, path)
    if _traits(again) != _traits(part) or _init_args(again) != description["init_args"]:
        raise UserError(
            f"{path}: made again from {description['init_args']} it is another one; keep every constructor argument, "
            "unchanged, as an attribute of the same name"
        )
    return description


def build(description: Any, base: type, where: str) -> Any:
    """Make a part from its description. Only subclasses of `base` are made, from plain arguments.

    A module outside of ovml is imported only if its source says that it defines the class.

    Args:
        description: What `describe` gave.
        base: The base class that the part must have.
        where: What to call the description in an error.

    Raises:
        UserError: It is no description, or there is no such class, or its arguments do not fit.
    """
    path = description.get("class_path") if isinstance(description, Mapping) else None
    init_args = description.get("init_args", {}) if isinstance(description, Mapping) else None
    if not isinstance(path, str) or not isinstance(init_args, Mapping) or not is_plain(init_args):
        raise UserError(f"{where}: expected class_path and plain init_args of a {base.__name__}; got {description!r}")
    module, _, name = path.rpartition(".")
    if not _defines(module, name):
        raise UserError(f"{where}: no class {path!r} here; install the package that has it, or put it on PYTHONPATH")
    try:
        cls = getattr(import_module(module), name, None)
    except Exception as error:  # a module of the user's may raise any
        raise UserError(f"{where}: {module} cannot be imported ({type(error).__name__}: {error})") from error
    if not (isinstance(cls, type) and issubclass(cls, base)) or inspect.isabstract(cls):
        raise UserError(f"{where}: {path!r} is no {base.__name__} that can be made; only subclasses of it are")
    try:
        return cls(**init_args)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {path} does not take {dict(init_args)} ({error})") from error


def _init_args(part: Any) -> dict[str, Any]:
    args = {}
    for name, parameter in inspect.signature(type(part)).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # of them only the trial tells whether they mattered
        value = getattr(part, name, parameter.empty)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()  # a parameter's start, whose weight is saved anyhow
        if value is parameter.empty or not is_plain(value):
            what = "is not kept" if value is parameter.empty else f"is kept as a {type(value).__name__}"
            raise UserError(
                f"{type(part).__module__}.{type(part).__qualname__}: cannot be described, its constructor's {name!r} "
                f"{what}; keep a plain value as self.{name}"
            )
        args[name] = list(value) if isinstance(value, tuple) else value
    return args


def _traits(part: Any) -> tuple[str, dict[str, Any]]:
    """Settings and, except where they come with the towers, the shapes of weights."""
    bound = getattr(type(part), "bind", Head.bind) is not Head.bind or not isinstance(part, nn.Module)
    return signature(part), {} if bound else {k: tuple(v.shape) for k, v in part.state_dict().items()}


def _defines(module: str, name: str) -> bool:
    """Whether a module is loaded, or its source has the class, found without running anything."""
    if module in sys.modules:
        return hasattr(sys.modules[module], name)
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        return False
    full, places, origin = "", None, None
    for part in module.split("."):
        full = f"{full}.{part}" if full else part
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        spec = next((found for find in finders if find and (found := find(full, places))), None)
        if spec is None:
            return False
        places, origin = spec.submodule_search_locations, spec.origin
    if not origin or not origin.endswith(".py"):
        return False
    try:
        tree = ast.parse(Path(origin).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return False
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body)
