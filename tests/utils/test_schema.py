"""Plain values against type annotations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovml.heads import Head, LocalHead
from ovml.losses import RankingLoss
from ovml.training import VisionStage
from ovml.utils.errors import UserError
from ovml.utils.parts import Part, build
from ovml.utils.schema import check_type


@dataclass
class Box:
    width: int
    height: float = 1.0


class Recipe(TypedDict, total=False):
    box: Box
    names: list[str] | None


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (3, int),
        (np.int64(3), int),
        (3, float),
        (np.float32(0.5), float),
        (None, int | None),
        ("a", Literal["a", "b"]),
        ((1, 2), list[int]),
        ([0.1, 0.2], tuple[float, ...]),
        ([0.1, 0.2], tuple[float, float]),
        ([1, "a"], list),
        ({"a": [1]}, dict[str, list[int]]),
        ({"width": 3}, Box),
        (Box(3), Box),
        ({"box": {"width": 3, "height": 2}, "names": None, "more": 5}, Recipe),
        ({}, Recipe),
        (object(), Any),
        (LocalHead(2), Head | None),
    ],
)
def test_values_of_their_type_pass(value, annotation):
    check_type(value, annotation, "here")


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (True, int, "here must be a whole number; got True"),
        (1.5, int, "here must be a whole number; got 1.5"),
        (10**30, int, "here must be a whole number; got 1000"),
        (True, float, "here must be a finite number; got True"),
        (float("nan"), float, "here must be a finite number; got nan"),
        (float("inf"), float, "here must be a finite number; got inf"),
        (10**400, float, "here must be a finite number"),
        ("1", float, "here must be a finite number; got '1'"),
        (1, bool, "here must be true or false; got 1"),
        (None, str, "here must be a string; got None"),
        ("x", int | None, "here must be a whole number or null; got 'x'"),
        ("c", Literal["a", "b"], "here must be 'a' or 'b'; got 'c'"),
        (1, Literal[True], "here must be True; got 1"),
        ("abc", list[str], "here must be a list; got 'abc'"),
        (b"abc", Sequence[str], "here must be a list; got b'abc'"),
        ([1, None], list[int], "here, 1 must be a whole number; got None"),
        ([1, "x"], list[int] | None, "here, 1 must be a whole number; got 'x'"),
        ([0.1], tuple[float, float], "here must be a list of 2; got"),
        ({1: 2}, dict[str, int], "here, a key must be a string; got 1"),
        ({"height": 1}, Box, "here must be a mapping with the key 'width'"),
        ({"width": 1, "depth": 1}, Box, "here must be a mapping without the key 'depth'"),
        ({"box": {"width": "3"}}, Recipe, "here, box, width must be a whole number; got '3'"),
        (5, Recipe, "here must be a mapping; got 5"),
        (RankingLoss(), Head, "here must be a Head; got RankingLoss"),
    ],
)
def test_other_values_are_named_with_their_place(value, annotation, message):
    with pytest.raises(UserError) as info:
        check_type(value, annotation, "here")
    assert str(info.value).startswith(message)
    assert "\n" not in str(info.value)


def test_what_is_nested_without_end_is_refused():
    value = []
    for _ in range(900):
        value = [value]
    check_type(value, list[Any], "here")
    with pytest.raises(UserError, match="expected class_path and plain init_args"):
        build({"class_path": "ovml.heads.LocalHead", "init_args": {"top_k": value}}, Head, "here")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN)
def test_any_argument_makes_a_part_or_one_line(value):
    for path, name, base in (
        ("ovml.heads.LocalHead", "top_k", Head),
        ("ovml.training.VisionStage", "epochs", Part),
        ("ovml.training.VisionStage", "layer_decay", Part),
        ("ovml.prompts.TemplatePrompt", "templates", Part),
        ("ovml.prompts.CoOpPrompt", "init", Part),
        ("ovml.training.LoRAStage", "targets", Part),
    ):
        try:
            build({"class_path": path, "init_args": {name: value}}, base, "here")
        except UserError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017


def test_arguments_of_any_number_are_checked_one_by_one():
    class Own(Part):
        def __init__(self, *ks: int, **weights: float) -> None:
            self.ks, self.weights = ks, weights

    assert Own(1, 2, a=0.5).ks == (1, 2)
    with pytest.raises(UserError, match="Own: ks, 1 must be a whole number; got 'x'"):
        Own(1, "x")
    with pytest.raises(UserError, match="Own: weights, a must be a finite number; got 'x'"):
        Own(a="x")


def test_annotations_that_only_a_type_checker_knows_are_not_checked():
    class Own(Part):
        def __init__(self, thing: "NoSuchName" = 1) -> None:  # noqa: F821
            self.thing = thing

    assert Own("anything").thing == "anything"


def test_arguments_of_the_base_class_are_checked_too():
    with pytest.raises(UserError, match="VisionStage: warmup_epochs must be a finite number; got 'x'"):
        VisionStage(warmup_epochs="x")
    with pytest.raises(UserError, match="VisionStage: num_layers must be a whole number; got 1.5"):
        VisionStage(num_layers=1.5)
