"""Every argument of every part refuses values of other types, in one line that names it."""

import inspect

import pytest

import ovml.distillation
import ovml.encoders.adapters
import ovml.heads
import ovml.losses
import ovml.metrics
import ovml.prompts
import ovml.training
from ovml.utils.errors import UserError
from ovml.utils.parts import Part
from ovml.utils.schema import constructor_types

ROOMS = (
    ovml.heads,
    ovml.losses,
    ovml.prompts,
    ovml.distillation,
    ovml.training,
    ovml.encoders.adapters,
    ovml.metrics,
)
PARTS = {
    cls
    for room in ROOMS
    for cls in vars(room).values()
    if isinstance(cls, type) and issubclass(cls, Part) and not inspect.isabstract(cls)
}
ARGUMENTS = [
    (cls, name, constructor_types(cls)[name])
    for cls in sorted(PARTS, key=lambda cls: cls.__name__)
    for name, parameter in inspect.signature(cls).parameters.items()
    if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
]
WRONG = [float("nan"), float("inf"), 10**400, object(), b"x", [object()], {1: 2}, "x", True, 1.5, None]


def fits(value, kind):
    """Whether a value may be meant, by the words of its type."""
    words = str(kind)
    return {
        str: "str" in words,
        bool: "bool" in words,
        type(None): "None" in words or "Optional" in words,
        float: value == 1.5 and "float" in words,
    }.get(type(value), False)


def test_parts_of_all_rooms_are_tried():
    assert len(PARTS) > 25
    assert {name for _, name, _ in ARGUMENTS} >= {"top_k", "lr", "layer_decay", "temperature", "num_context", "rank"}


@pytest.mark.parametrize(("cls", "name", "kind"), ARGUMENTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_other_types_are_one_line(cls, name, kind):
    given = {other.name: 1 for other in inspect.signature(cls).parameters.values() if other.default is other.empty}
    for value in WRONG:
        if fits(value, kind):
            continue
        with pytest.raises(UserError, match=f"^{cls.__name__}: .* must be ") as info:
            cls(**{**given, name: value})
        assert len(str(info.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (cls, name)
        for cls, name, kind in ARGUMENTS
        if kind in (int, float, int | None) and name not in ("margin", "offset", "alpha")
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_numbers_below_zero_are_one_line(cls, name):
    with pytest.raises(UserError) as info:
        cls(**{name: -1})
    assert name in str(info.value)
    assert len(str(info.value).splitlines()) == 1
