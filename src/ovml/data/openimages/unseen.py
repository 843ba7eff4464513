"""The unseen labels of Open Images: the published list, and files that hold such a list."""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from pathlib import Path

from ovml.data.openimages.csv import AGAIN
from ovml.data.openimages.files import read_class_list
from ovml.utils.errors import UserError, first_line
from ovml.utils.files import read_text
from ovml.utils.resources import RESOURCES

PUBLISHED = RESOURCES / "openimages_unseen.txt"
"""Machine ids of the 400 unseen labels of the literature."""
BIAM_NAMES = "unseen_labels.pkl"
"""BiAM's list of candidates, which its table of indices lies beside."""


def published_unseen() -> list[str]:
    """The 400 unseen labels of the literature as BiAM's published code has them, machine ids.

    >>> len(published_unseen()), published_unseen()[0]
    (400, '/m/011v5tq3')
    """
    return PUBLISHED.read_text(encoding="utf-8").split()


def read_unseen(path: Path, names: Mapping[str, str]) -> list[str]:
    """Read a list of unseen labels: machine ids, one per line; or BiAM's table of indices `top_400_unseen.csv`.

    Args:
        path: The file; beside a table of indices lies `unseen_labels.pkl`.
        names: Name of every machine id.

    Raises:
        UserError: The file cannot be read, or has a label without a name.
    """
    if path.suffix != ".csv":
        return read_class_list(path, names)
    labels = read_biam(path)
    if nameless := [label for label in labels if label not in names]:
        raise UserError(f"{path}: {nameless[0]} is not in the class descriptions, so it has no name; {AGAIN}")
    return labels


def read_biam(path: Path) -> list[str]:
    """Read BiAM's two files of unseen labels. The pickle is never executed: only its texts are looked at.

    Raises:
        UserError: A file is missing or malformed.
    """
    candidates = path.parent / BIAM_NAMES
    try:
        opcodes = list(pickletools.genops(candidates.read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(f"{candidates}: cannot be read ({first_line(error)}); it lies beside {path.name}") from error
    labels = [value for _, value, _ in opcodes if isinstance(value, str) and value.startswith(("/m/", "/g/", "/t/"))]
    text = read_text(path, "index", f"a row of {BIAM_NAMES} per line, counted from 0")
    found = []
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines())), start=1):
        if not line.isdecimal() or int(line) >= len(labels):
            raise UserError(f"{path}, line {number}: {line[:20]!r} is no row of {candidates} ({len(labels):,} labels)")
        found.append(labels[int(line)])
    return found
