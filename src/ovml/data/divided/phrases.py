"""Phrases that a text tower understands, in the place of names such as `AgeOver60`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ovml.utils.errors import UserError
from ovml.utils.files import read_text
from ovml.utils.lists import csv_rows
from ovml.utils.resources import RESOURCES


def read_phrases(given: str | None, packaged: str | None = None) -> dict[str, str]:
    """Read a table of phrases with the columns `label` and `phrase`.

    Args:
        given: A file of one's own.
        packaged: Name of a packaged one, if none is given.

    Returns:
        The phrase of each label, by its letters and digits.

    Raises:
        UserError: The file cannot be read, has other columns, or has two phrases for a label.

    >>> read_phrases(None, "pa100k")["ageover60"]
    'person over 60'
    """
    if given is None and packaged is None:
        return {}
    path = Path(given).expanduser() if given is not None else RESOURCES / "phrases" / f"{packaged}.csv"
    text = read_text(path, "phrase", "CSV with the columns label and phrase")
    rows = csv_rows(text, path, "correct it")
    _, header = next(rows, ("", []))
    if set(header) != {"label", "phrase"}:
        raise UserError(f"{path}: the columns are {', '.join(header)}; give label and phrase")
    phrases: dict[str, str] = {}
    for where, cells in rows:
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
        label, phrase = row.get("label"), row.get("phrase")
        if not (label and phrase):
            raise UserError(f"{where}: a label or its phrase is missing")
        if phrases.setdefault(_key(label), phrase) != phrase:
            raise UserError(f"{where}: {label!r} has another phrase already; keep one")
    return phrases


def phrases_of(names: Sequence[str], phrases: Mapping[str, str]) -> tuple[str, ...]:
    """What the text tower reads for each name: its phrase; or else the name.

    >>> phrases_of(["Age Over60", "hat"], {"ageover60": "person over 60"})
    ('person over 60', 'hat')
    """
    return tuple(phrases.get(_key(name), name) for name in names)


def _key(name: str) -> str:
    """What of a name counts: lists of one data set differ in `HandBag`, `Hand Bag` and `attach-HandBag`.

    >>> _key("attach-HandBag") == _key("Hand Bag"), _key("Skirt&Dress") == _key("Skirt and Dress")
    (True, True)
    """
    plain = re.sub(r"^(hs|ub|lb|shoes|attach|action)-", "", name.strip().replace("&", "and"))
    return re.sub(r"[^a-z0-9]", "", plain.lower())
