"""Checks of plain values, such as those of a JSON file or a constructor, against type annotations."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from typing_extensions import NotRequired, Required, is_typeddict

from ovml.utils.errors import UserError

MOST_DEPTH = 50
"""Of lists in lists and mappings in mappings."""
WORDS: dict[Any, str] = {
    **{bool: "true or false", int: "a whole number", float: "a finite number", str: "a string", NoneType: "null"},
    **{list: "a list", tuple: "a list", Sequence: "a list", dict: "a mapping", Mapping: "a mapping"},
}


def check_type(value: Any, annotation: Any, where: str) -> None:
    """Check that a value is what a type annotation says.

    Numbers must be finite, and `True` is none. A list may stand for any sequence, and a mapping for a `TypedDict`,
    which may have more keys, or for a dataclass, which may not. For other classes an instance is needed.

    Args:
        value: The value.
        annotation: A type, as in a signature.
        where: What to call the value in an error.

    Raises:
        UserError: It is another value. The error names the place inside it.

    >>> check_type([1, 2.5], list[float], "scales")
    >>> check_type({"ks": [3, True]}, dict[str, list[int]], "config.json")
    Traceback (most recent call last):
    ovml.utils.errors.UserError: config.json, ks, 1 must be a whole number; got True
    """
    if found := _problem(value, annotation, (where,)):
        place, expected, wrong = found
        raise UserError(f"{', '.join(place)} must be {expected}; got {short(wrong)}")


def short(value: Any) -> str:
    """A value in a line of an error, cut if it is long.

    >>> short(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    return reprlib.repr(value)


def constructor_types(cls: type) -> Mapping[str, Any]:
    """The annotations of a constructor's arguments; of a dataclass or `TypedDict` those of its fields."""
    annotated = cls if is_dataclass(cls) or is_typeddict(cls) else cls.__init__  # type: ignore[misc]
    try:
        return get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError):  # imported for type checkers only
        return {}


Problem = tuple[tuple[str, ...], str, Any]
"""The place of a wrong value, what it should be, and the value."""


def _problem(value: Any, kind: Any, place: tuple[str, ...]) -> Problem | None:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if len(place) > MOST_DEPTH:
        return place[:2], f"nested at most {MOST_DEPTH} times", value
    if origin in (Required, NotRequired):
        return _problem(value, arguments[0], place)
    if origin in (Union, UnionType):
        found = [_problem(value, member, place) for member in arguments]
        wrong = [problem for problem in found if problem is not None]
        inner = [problem for problem in wrong if len(problem[0]) > len(place)]
        return None if len(wrong) < len(found) else (*inner, (place, _words(kind), value))[0]
    if origin in (list, tuple, Sequence):
        whole = isinstance(value, (list, tuple))
        return _problem_in_list(value, kind, place) if whole else (place, _words(kind), value)
    if isinstance(value, Mapping) and (origin in (dict, Mapping) or is_typeddict(kind) or is_dataclass(kind)):
        return _problem_in_mapping(value, kind, place)
    return None if _is_plain_instance(value, origin, arguments) else (place, _words(kind), value)


def _is_plain_instance(value: Any, kind: Any, choices: Sequence[Any]) -> bool:
    if kind is Literal:
        return any(type(value) is type(choice) and value == choice for choice in choices)
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return number and abs(value) <= (sys.maxsize if kind is int else sys.float_info.max)
    if is_typeddict(kind):
        return False  # only a mapping is one
    try:
        return isinstance(value, NoneType if kind is None else kind)
    except TypeError:  # no class, such as Any
        return True


def _problem_in_list(values: Sequence[Any], kind: Any, place: tuple[str, ...]) -> Problem | None:
    items = get_args(kind)
    fixed = get_origin(kind) is tuple and items[-1] is not Ellipsis
    if fixed and len(items) != len(values):
        return place, _words(kind), values
    kinds = items if fixed else (*items, Any)[:1] * len(values)
    found = (_problem(v, k, (*place, str(i))) for i, (v, k) in enumerate(zip(values, kinds, strict=True)))
    return next(filter(None, found), None)


def _problem_in_mapping(values: Mapping[Any, Any], kind: Any, place: tuple[str, ...]) -> Problem | None:
    if not (is_typeddict(kind) or is_dataclass(kind)):
        key_kind, value_kind = get_args(kind) or (Any, Any)
        keys = (_problem(key, key_kind, (*place, "a key")) for key in values)
        items = (_problem(value, value_kind, (*place, short(key).strip("'"))) for key, value in values.items())
        return next(filter(None, (*keys, *items)), None)
    kinds = constructor_types(kind)
    if is_dataclass(kind):
        needed = {f.name for f in fields(kind) if f.init and f.default is MISSING and f.default_factory is MISSING}
        if unknown := next((key for key in values if key not in kinds), None):
            return place, f"a mapping without the key {short(unknown)}", values
    else:
        # `__required_keys__` lacks those of annotations that are strings.
        needed = set(kind.__required_keys__) | {key for key, hint in kinds.items() if get_origin(hint) is Required}
    if missing := needed - values.keys():
        return place, f"a mapping with the key {min(missing)!r}", values
    found = (_problem(values[key], kinds[key], (*place, key)) for key in kinds if key in values)
    return next(filter(None, found), None)


def _words(kind: Any) -> str:
    """What a type is called in an error."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, arguments)))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}"
    if is_typeddict(kind) or is_dataclass(kind):
        return "a mapping"
    return WORDS.get(origin, f"a {getattr(origin, '__name__', origin)}")
