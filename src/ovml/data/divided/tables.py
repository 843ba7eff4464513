"""Tables of images and labels: a column of names, then a column of 0 and 1 for each label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ovml.utils.errors import UserError
from ovml.utils.files import read_text
from ovml.utils.lists import csv_rows

EXPECTED = "CSV with a column of image names, then a column of 0 and 1 for each label"
MOST_BYTES = 2**28
"""Size of the largest table."""


def read_table(path: Path) -> tuple[tuple[str, ...], Iterator[tuple[str, list[str]]]]:
    """The labels in the header of a table; and the image and the labels of each row.

    Raises:
        UserError: The table cannot be read, or has no label. Later: a row has another number of cells, or one that is
            not 0 or 1.
    """
    rows = csv_rows(read_text(path, "annotation", EXPECTED, MOST_BYTES), path, f"it is {EXPECTED}")
    _, header = next(rows, ("", []))
    labels = tuple(name.strip() for name in header[1:])
    if not labels:
        raise UserError(f"{path}: has no column of a label; it is {EXPECTED}")
    return labels, (_row(where, row, labels) for where, row in rows)


def _row(where: str, row: Sequence[str], labels: Sequence[str]) -> tuple[str, list[str]]:
    name, *cells = map(str.strip, row)
    if not name or len(cells) != len(labels):
        raise UserError(f"{where}: expected {1 + len(labels)} cells; download it again")
    if wrong := [cell for cell in cells if cell not in ("0", "1")]:
        raise UserError(f"{where}: {wrong[0][:20]!r} is not 0 or 1; it is {EXPECTED}")
    return name, [label for label, cell in zip(labels, cells, strict=True) if cell == "1"]
