"""Packages whose names are loaded when they are first used, so that importing them costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names_of: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The functions `__getattr__` and `__dir__` and the list `__all__` of a package.

    Args:
        package: Its name.
        names_of: Names to export by the module that has them, which is named from the package on.

    >>> load, _, names = lazy_names("collections", {"abc": ["Mapping", "Iterable"]})
    >>> names, load("Mapping").__name__
    (['Iterable', 'Mapping'], 'Mapping')
    """
    home = {name: f"{package}.{module}" for module, names in names_of.items() for name in names}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home[name]), name)

    return load, lambda: sorted(home), sorted(home)
