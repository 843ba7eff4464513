"""YAML that users wrote, checked before it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]

from ovml.utils.errors import all_lines

MOST_NODES = 2_000_000
"""Values and keys that a document may have after its aliases are expanded: a million ids with their names."""
MOST_DEPTH = 100
"""Lists and mappings inside one another."""


class _Open:
    """An open list or mapping."""

    def __init__(self, event: Any) -> None:
        self.anchor = event.anchor
        self.keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
        self.children = 0
        self.nodes = 1


def check_yaml(text: str, most_nodes: int = MOST_NODES) -> None:
    """Check that YAML can be loaded in bounded time and memory, and that no value is lost.

    The events of the parser are counted, and nothing is built: aliases may stand for exponentially many values.

    Args:
        text: The document.
        most_nodes: Values and keys that it may have after its aliases are expanded.

    Raises:
        yaml.YAMLError: A key is given twice, an alias stands for itself, the values are nested too deeply or too many,
            or the text is not YAML.
    """
    anchors: dict[str, int] = {}
    opened: list[_Open] = []
    for event in _events(text):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            opened.append(_Open(event))
            if len(opened) > MOST_DEPTH:
                raise _error(event, f"more than {MOST_DEPTH} lists and mappings inside one another")
            continue
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            closed = opened.pop()
            anchor, nodes = closed.anchor, closed.nodes
        elif isinstance(event, yaml.ScalarEvent):
            anchor, nodes = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise _error(event, f"*{event.anchor} has no anchor before it, or stands inside of its own")
            anchor, nodes = None, anchors[event.anchor]
        else:
            continue
        if anchor is not None:
            anchors[anchor] = nodes
        if not opened:
            continue
        parent = opened[-1]
        if parent.keys is not None and parent.children % 2 == 0 and isinstance(event, yaml.ScalarEvent):
            if event.value in parent.keys:
                raise _error(event, f"the key {event.value!r} is given twice")
            parent.keys.add(event.value)
        parent.children += 1
        parent.nodes += nodes
        if parent.nodes > most_nodes:
            raise _error(event, f"more than {most_nodes:,} values and keys, counting what aliases stand for")


def load_yaml(text: str, most_nodes: int = MOST_NODES) -> Any:
    """Load YAML of plain values: no tag makes objects of Python.

    Args:
        text: The document.
        most_nodes: See `check_yaml`.

    Raises:
        yaml.YAMLError: See `check_yaml`; or a value cannot be built, such as the date 2024-99-99.

    >>> load_yaml("stages: [vision, prompt]")
    {'stages': ['vision', 'prompt']}
    """
    check_yaml(text, most_nodes)
    try:
        return yaml.load(text, _loader())
    except (ValueError, TypeError, OverflowError) as error:
        raise yaml.YAMLError(str(error)) from error


def yaml_reason(error: Exception) -> str:
    r"""One short line on an error of YAML, with the line in the file.

    >>> try:
    ...     load_yaml("a: 1\na: 2")
    ... except yaml.YAMLError as error:
    ...     print(yaml_reason(error))
    line 2: the key 'a' is given twice
    """
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = "" if mark is None else f"line {mark.line + 1}: "
    return f"{where}{all_lines(problem or error)[:120]}"


def _events(text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, _loader())
    except ValueError as error:  # of half a surrogate pair
        raise yaml.YAMLError(str(error)) from error


def _loader() -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


def _error(event: Any, problem: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
