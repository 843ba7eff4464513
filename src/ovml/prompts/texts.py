"""Texts for label names, from files: templates, descriptions and synonyms, and names of what is no label."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ovml.utils.errors import UserError
from ovml.utils.files import read_text
from ovml.utils.resources import RESOURCES
from ovml.utils.schema import short
from ovml.vocabulary import label_key, read_names


def packaged_background(name: str = "voc") -> tuple[str, ...]:
    """Names that TagCLIP's code scores beside the labels, such as "sky": what images show that is no label.

    Args:
        name: `voc`, 25 names; or `coco`, where two of them are labels or parts of one.

    Raises:
        UserError: There is none of this name.

    >>> len(packaged_background()), len(packaged_background("coco"))
    (25, 23)
    """
    return read_names(_packaged("background", f"{name}.txt"))


def read_templates(name: str) -> list[tuple[str, str]]:
    """Read a file of templates, one per line: a path, or the bare name of one that ovml ships.

    `openai.txt` has the 80 templates of CLIP's prompt engineering for ImageNet (openai/CLIP, MIT licence);
    `tagclip.txt` has five more, such as "there is a {} in the scene.", as in the codes of TagCLIP and CLIP Surgery.

    Returns:
        Each template with its place, for errors.

    Raises:
        UserError: There is no such file, or it cannot be read.

    >>> len(read_templates("openai.txt")), len(read_templates("tagclip.txt"))
    (80, 85)
    """
    path = name if os.path.isfile(name) or Path(name).name != name else _packaged("templates", name, missing=name)
    lines = enumerate(read_text(path, "template", "one template per line").splitlines(), start=1)
    return [(f"{name}, line {number}", line.strip()) for number, line in lines if line.strip()]


def label_texts(texts: str | Mapping[str, Any], noun: str) -> dict[str, list[str]]:
    """Read several texts for each label.

    Args:
        texts: Texts by label, or the path of a file. JSON: `{label: [text, ...]}`. CSV: a label and then its texts in
            each line, and perhaps a header whose first cell is `label`; lines of one label add up.
        noun: What the texts are, such as `description`.

    Returns:
        Texts by label, stripped.

    Raises:
        UserError: The file cannot be read, a label is empty or repeated, or it has no text or an empty one.

    >>> label_texts({"cat": ["kitten", " tomcat "]}, "synonym")
    {'cat': ['kitten', 'tomcat']}
    """
    where = f"{noun}s"
    pairs: Iterable[tuple[str, Any]] = ()
    if isinstance(texts, Mapping):
        pairs = texts.items()
    else:
        where = texts
        form = f"JSON such as {{name: [{noun}, ...]}}, or CSV with a name and then its {noun}s in each line"
        content = read_text(where, noun, form)
        pairs = _of_csv(content, where) if where.lower().endswith(".csv") else _of_json(content, where, noun)
    found: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for name, own in pairs:
        if not label_key(name):
            raise UserError(f"{where}, key {name!r}: the name is empty; give it one or remove it")
        if label_key(name) in first:
            raise UserError(f"{where}, key {name!r}: the same name as {first[label_key(name)]!r}; keep one of them")
        first[label_key(name)] = name
        whole = isinstance(own, (list, tuple)) and not isinstance(own, _Pairs)
        if not whole or not own or not all(isinstance(text, str) and text.strip() for text in own):
            raise UserError(f"{where}, key {name!r}: expected a list of {noun}s, none of them empty; got {short(own)}")
        found[name] = [text.strip() for text in own]
    return found


def _of_json(content: str, where: str, noun: str) -> Iterable[tuple[str, Any]]:
    try:
        # As pairs, because a dict drops the first of two equal keys.
        pairs = json.loads(content, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}, line {error.lineno}: not JSON ({error.msg}); correct it") from error
    if not isinstance(pairs, _Pairs):
        raise UserError(f"{where}: expected a JSON object {{name: [{noun}, ...]}}")
    return pairs


def _of_csv(content: str, where: str) -> Iterable[tuple[str, Any]]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    found: dict[str, tuple[str, list[str]]] = {}
    try:
        for number, cells in enumerate(cells for cells in reader if any(cell.strip() for cell in cells)):
            name, *own = [cell.strip() for cell in cells]
            if number == 0 and name.lower() in ("label", "name"):
                continue
            found.setdefault(label_key(name), (name, []))[1].extend(text for text in own if text)
    except csv.Error as error:
        raise UserError(f"{where}, line {reader.line_num}: {error}; check the quotes") from error
    return found.values()


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as pairs, in the order of the file."""


def _packaged(folder: str, name: str, missing: str | None = None) -> str | Path:
    """The file of a name in a folder of resources; `missing` where there is none, if that is given."""
    shipped = sorted(path.name for path in (RESOURCES / folder).glob("*.txt"))
    if name in shipped:
        return RESOURCES / folder / name
    if missing is None:
        known = ", ".join(other.removesuffix(".txt") for other in shipped)
        raise UserError(f"{folder} {name.removesuffix('.txt')!r}: not one that ovml ships; those are {known}")
    return missing
