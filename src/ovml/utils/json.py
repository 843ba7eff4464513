"""JSON that users wrote."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

from ovml.utils.errors import UserError, beginning


def load_json(text: str) -> Any:
    """Load JSON such that no value is lost.

    Raises:
        ValueError: The text is not JSON; a `UserError` where a key stands twice in one object.
        RecursionError: The values are nested too deeply.

    >>> load_json('{"cat": 1, "cat": 2}')
    Traceback (most recent call last):
    ovml.utils.errors.UserError: "cat" stands twice in one object; keep one of them
    """
    return json.loads(text, object_pairs_hook=_unique)


def shown(value: Any, most: int = 60) -> str:
    """A value as JSON in a line of an error, cut if it is long.

    >>> shown({"a": [1]}), shown("x" * 100, most=8)
    ('{"a": [1]}', '"xxxxxxx...')
    """
    pieces = islice(json.JSONEncoder().iterencode(value), most + 1)  # lazily: the value may be a whole file
    return beginning("".join(pieces), most)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise UserError(f"{json.dumps(key)[:60]} stands twice in one object; keep one of them")
    return content
