"""Parts of a model as plain data: a class path and constructor arguments."""

from __future__ import annotations

import ast
import inspect
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import GenericAlias
from typing import Any

from ovml.utils.errors import UserError, error_at, first_line
from ovml.utils.schema import MOST_DEPTH, check_type, constructor_types, short

Description = dict[str, Any]
"""`{"class_path": str, "init_args": {name: plain value}}`, as in the YAML of the command line."""


class Part:
    """Base of all that a model and its training are made of: heads, prompts, losses, distillations, stages and so on.

    A part checks its constructor's arguments against their type annotations, and remembers them, so that `describe` can
    tell how it was made.

    Raises:
        UserError: An argument is of another type than its annotation says, or is not a finite number.

    Example:
        >>> class Scale(Part):
        ...     def __init__(self, factor=1.0):
        ...         self.half = factor / 2
        >>> describe(Scale(factor=3.0))["init_args"]
        {'factor': 3.0}
    """

    _made_with: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a part that remembers its arguments."""
        part = super().__new__(cls)
        try:
            bound = inspect.signature(cls).bind_partial(*args, **kwargs)
            made_with = bound.arguments
        except TypeError:  # the constructor says what is wrong
            made_with = {}
        types = constructor_types(cls)
        for name in made_with.keys() & types.keys():
            annotation, parameter = types[name], bound.signature.parameters[name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                annotation = GenericAlias(list, annotation)
            elif parameter.kind is parameter.VAR_KEYWORD:
                annotation = GenericAlias(dict, (str, annotation))
            check_type(made_with[name], annotation, f"{cls.__name__}: {name}")
        object.__setattr__(part, "_made_with", dict(made_with))
        return part

    def init_args(self) -> dict[str, Any]:
        """Constructor arguments that make an equal part: its attributes of their names, or what it was made with.

        Raises:
            UserError: Neither makes an equal part.
        """
        given, own = self._given(), self._plain_attributes()
        for arguments in ({name: own.get(name, value) for name, value in given.items()}, given):
            if self._equals(type(self)(**arguments)):
                return arguments
        raise UserError(
            f"{class_path(type(self))}: made again from {given} it is another one; keep every constructor argument as "
            "an attribute of the same name"
        )

    def _equals(self, other: Part) -> bool:
        """Whether settings and shapes of weights that both have are equal; some are made later, as in `bind`."""
        mine, theirs = (
            {
                **part._plain_attributes(),
                **{k: v.shape for k, v in getattr(part, "state_dict", dict)().items() if v.numel()},
            }
            for part in (self, other)
        )
        return all(mine[name] == theirs[name] for name in mine.keys() & theirs.keys())

    def _given(self) -> dict[str, Any]:
        """The constructor's arguments, defaults filled in."""
        given: dict[str, Any] = {}
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= self._made_with.get(name, {})
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                given[name] = self._made_with.get(name, parameter.default)
        return given

    def _plain_attributes(self) -> dict[str, Any]:
        """Settings: attributes that are numbers, texts, or lists and mappings of them."""
        public = {name: v for name, v in vars(self).items() if not name.startswith("_") and name != "training"}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in public.items() if is_plain(v)}

    def extra_repr(self) -> str:
        """The arguments, which torch prints before the modules inside of a module."""
        own = self._plain_attributes()
        return ", ".join(f"{name}={own.get(name, value)!r}" for name, value in self._given().items())

    def __repr__(self) -> str:
        is_module = hasattr(self, "named_children")
        return super().__repr__() if is_module else f"{type(self).__name__}({self.extra_repr()})"


def is_plain(value: Any, depth: int = MOST_DEPTH) -> bool:
    """Whether a value can be kept as JSON: numbers, strings, and lists and mappings of them.

    >>> is_plain({"ks": [3, 5]}), is_plain(object())
    (True, False)
    """
    if isinstance(value, Mapping):
        return depth > 0 and all(isinstance(k, str) and is_plain(v, depth - 1) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(is_plain(v, depth - 1) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


def describe(part: Part) -> Description:
    """The class path and the constructor arguments of a part, from which `build` makes an equal one.

    Weights are not described. The class path of ovml's own classes is the public one.

    Args:
        part: Any part; parts among its arguments are described too.

    Raises:
        UserError: An argument is neither plain nor a part.

    Example:
        >>> from ovml.heads import LocalHead
        >>> describe(LocalHead(top_k=2))
        {'class_path': 'ovml.heads.LocalHead', 'init_args': {'top_k': 2}}
    """
    path = class_path(type(part))
    return {"class_path": path, "init_args": {k: _described(v, f"{path}, {k}") for k, v in part.init_args().items()}}


def _described(value: Any, where: str) -> Any:
    if isinstance(value, Part):
        return describe(value)
    if isinstance(value, (list, tuple)):
        return [_described(item, where) for item in value]
    if not is_plain(value):
        raise UserError(
            f"{where}: cannot be saved, it is a {type(value).__name__}; take numbers, strings, lists or parts of ovml "
            "as constructor arguments"
        )
    return value


def class_path(cls: type) -> str:
    """The import path of a class; of ovml's own the room that exports it, not the file that it stands in.

    >>> from ovml.heads.local import LocalHead
    >>> class_path(LocalHead)
    'ovml.heads.LocalHead'
    """
    names = cls.__module__.split(".")
    for length in range(2, len(names) if names[0] == "ovml" else 0):
        room = ".".join(names[:length])
        if getattr(sys.modules.get(room), cls.__qualname__, None) is cls:
            return f"{room}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def check_importable(part: Part) -> None:
    """Check that another process finds a part's class.

    Raises:
        UserError: The class is defined in a script, a notebook or a function.
    """
    if reason := _not_importable(type(part)):
        raise UserError(reason)


def warn_unless_importable(*parts: Part) -> None:
    """Warn of parts whose class no other process finds, before hours of training are spent on them."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "ovml":
        frame, level = frame.f_back, level + 1  # the warning shows the user's own line
    for reason in filter(None, map(_not_importable, map(type, parts))):
        warnings.warn(reason, stacklevel=level)


def _not_importable(cls: type) -> str | None:
    """Why another process does not find a class, and what to do."""
    if cls.__module__ == "__main__":
        place = "in a notebook, or in the script that runs"
    elif "<locals>" in cls.__qualname__:
        place = "inside of a function"
    elif "." in cls.__qualname__:
        place = "inside of a class"
    else:
        return None
    return (
        f"{cls.__name__}: defined {place}, so a model with it cannot be loaded elsewhere; define it at the top of a "
        "file, such as my_parts.py, and import it from there"
    )


def build(description: Any, base: Any, where: str) -> Any:
    """Make a part from its description. Only subclasses of `base` are made, from plain arguments and other parts.

    A module outside of ovml is imported only if its source says that it defines the class.

    Args:
        description: What `describe` gave.
        base: The base class that the part must have.
        where: What to call the description in an error.

    Raises:
        UserError: It is no description, there is no such class, or its arguments do not fit.
    """
    if isinstance(description, Mapping) and "error" in description:
        raise UserError(f"{where}: {description['error']}; or pass the same one again")
    path = description.get("class_path") if isinstance(description, Mapping) else None
    init_args = description.get("init_args", {}) if isinstance(description, Mapping) else None
    if not isinstance(path, str) or not isinstance(init_args, Mapping) or not is_plain(init_args):
        raise UserError(
            f"{where}: expected class_path and plain init_args of a {base.__name__}; got {short(description)}"
        )
    module, _, name = path.rpartition(".")
    if not defines(module, name):
        raise UserError(f"{where}: no class {path!r} here; {_how_to_find(module)}")
    try:
        cls = getattr(import_module(module), name, None)
    except Exception as error:  # a module of the user's may raise any
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: {module} cannot be imported ({reason}); install what it needs") from error
    if not (isinstance(cls, type) and issubclass(cls, base)) or inspect.isabstract(cls):
        raise UserError(f"{where}: {path!r} cannot be made; give a subclass of {base.__name__} that is not abstract")
    arguments = {key: _built(value, f"{where}, {key}") for key, value in init_args.items()}
    try:
        with error_at(where):
            return cls(**arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {path} does not take {short(dict(init_args))} ({first_line(error)})") from error


def _how_to_find(module: str) -> str:
    """Advice on a module that is not found; the current folder is not searched for what a file names."""
    name = module.partition(".")[0]
    if name and (Path(f"{name}.py").is_file() or Path(name).is_dir()):
        return f"if it is the one in this folder, write PYTHONPATH=. before the command (it runs {name})"
    return "install the package that has it, or put it on PYTHONPATH"


def _built(value: Any, where: str) -> Any:
    if isinstance(value, Mapping) and "class_path" in value:
        return build(value, Part, where)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_built(item, where) for item in value]
    return value


def defines(module: str, name: str) -> bool:
    """Whether a module is loaded, or its source has the class; found without running anything."""
    if module in sys.modules:
        return hasattr(sys.modules[module], name)
    if not all(part.isidentifier() and not part.startswith("__") for part in (*module.split("."), name)):
        return False  # no name of a class, or `__main__`, which would run
    if module.split(".")[0] == "ovml":
        return True
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
