"""Tables of images and labels: a column of names, then a column of 0 and 1 for each label."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from ovml.utils.errors import UserError
from ovml.utils.files import read_text

EXPECTED = "CSV with a column of image names, then a column of 0 and 1 for each label"
MOST_BYTES = 2**28
"""Size of the largest table."""


def table_labels(path: Path) -> tuple[str, ...]:
    """The labels in the header of a table.

    Raises:
        UserError: The table cannot be read, or has no label.
    """
    header = _reader(path).fieldnames or ()
    if len(header) < 2:
        raise UserError(f"{path}: has no column of a label; it is {EXPECTED}")
    return tuple(name.strip() for name in header[1:])


def table_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The image and the labels of each row.

    Raises:
        UserError: The table cannot be read, or a row has another number of cells, or one that is not 0 or 1.
    """
    labels = table_labels(path)
    reader = _reader(path)
    try:
        for row in reader:
            name, *cells = row.values()
            if None in row or None in cells or not name or not name.strip():
                raise UserError(f"{path}, line {reader.line_num}: expected {1 + len(labels)} cells; download it again")
            cells = [cell.strip() for cell in cells]
            wrong = next((cell for cell in cells if cell not in ("0", "1")), None)
            if wrong is not None:
                raise UserError(f"{path}, line {reader.line_num}: {wrong[:20]!r} is not 0 or 1; it is {EXPECTED}")
            yield name.strip(), [label for label, cell in zip(labels, cells, strict=True) if cell == "1"]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; it is {EXPECTED}") from error


def _reader(path: Path) -> csv.DictReader[str]:
    return csv.DictReader(io.StringIO(read_text(path, "annotation", EXPECTED, MOST_BYTES)), strict=True)
