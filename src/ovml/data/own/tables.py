"""Tables of images and labels: CSV, TSV, JSON Lines, data frames."""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from numbers import Real
from pathlib import Path
from typing import Any

from ovml.data.labels import some
from ovml.data.own.labelled import ImageIndex, LabelledSet, Rows, split_of
from ovml.utils.errors import UserError, first_line
from ovml.utils.files import read_text
from ovml.utils.json import load_json
from ovml.utils.lists import column_key

IMAGE_COLUMNS = ("image", "filename", "file", "path", "filepath", "imagepath", "imagefile", "img", "imageid", "id")
LABEL_COLUMNS = ("labels", "label", "tags", "tag", "classes", "class", "categories", "category", "objects", "name")
SPLIT_COLUMNS = ("split", "subset", "set", "partition")
"""Column names, without case, blanks, `_` and `-`, best first."""
OBJECT_KEYS = ("categories", "category", "labels", "label", "names", "name")
"""Where objects have their names."""
SEPARATORS = ("|", ";", ",")
TABLES = (".csv", ".tsv", ".jsonl")
MOST_BYTES = 2**30
"""Size of the largest table."""

Columns = Mapping[str, Sequence[Any]]
Options = Mapping[str, str | None]
"""`image_column`, `label_column` and `separator` of `table_rows`."""


def read_table(path: Path) -> dict[str, list[Any]]:
    """Columns of a CSV, TSV or JSON Lines file with a header.

    Raises:
        UserError: It is not such a table.
    """
    text = read_text(path, "table", "CSV, TSV or JSON Lines", MOST_BYTES)
    try:
        if path.suffix.lower() == ".jsonl":
            rows = [load_json(line) for line in io.StringIO(text) if line.strip()]
            header = list(dict.fromkeys(name for row in rows for name in row))
            return {name: [row.get(name) for row in rows] for name in header}
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header, *cells = (row for row in lines if any(row))
    except (ValueError, RecursionError, csv.Error, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not a table with a header ({first_line(error)}); export it again") from error
    if len(set(header)) < len(header):
        raise UserError(f"{path}: two columns have the same name; rename one of {', '.join(map(repr, header))}")
    for number, row in enumerate(cells, 2):
        if len(row) > len(header):
            raise UserError(f"{path}: row {number} has {len(row)} cells for {len(header)} columns; quote its cells")
    return {name: list(column) for name, column in zip(header, zip_longest(*cells, fillvalue=""), strict=False)}


def table_rows(
    columns: Columns,
    where: str,
    locate: Callable[..., Any],
    image_column: str | None = None,
    label_column: str | None = None,
    separator: str | None = None,
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Rows of a table by split, and the labels that its header lists.

    Args:
        columns: Cells by column name.
        where: The table's name in errors.
        locate: Turns a cell of the image column and `role`, a split, into an image.
        image_column: Default: the one of a usual name.
        label_column: Default: the one of a usual name, else the only other column; without one, all other columns
            whose cells are 0 and 1 (or empty or -1, for unknown) are labels.
        separator: Between the labels of a cell. Default: `|`, `;` or `,`, the first that occurs; or lists.

    Returns:
        Rows by split (`train` without a column for it), and the names in the header. Rows that repeat an image are
        joined.

    Raises:
        UserError: A column is missing, or a cell of the image column is empty.
    """
    image = find_column(columns, image_column, IMAGE_COLUMNS, where, "image_column")
    split = next((name for key in SPLIT_COLUMNS for name in columns if column_key(name) == key), None)
    others = [name for name in columns if name not in (image, split)]
    indicators = [name for name in others if label_column is None and _is_indicator(columns[name])]
    is_alone = len(indicators) == 1 and indicators == others and column_key(others[0]) not in LABEL_COLUMNS
    if len(indicators) > 1 or is_alone:
        names = tuple(indicators)
        labels = [[n for n in names if _flag(columns[n][i]) == 1] for i in range(len(columns[image]))]
        unknown = [[n for n in names if _flag(columns[n][i]) is None] for i in range(len(columns[image]))]
    else:
        rest = {name: columns[name] for name in others}
        names, column = (), find_column(rest, label_column, LABEL_COLUMNS, where, "label_column")
        labels = cells_of_labels(columns[column], separator)
        unknown = [[] for _ in labels]
    roles = ["train"] * len(columns[image]) if split is None else _roles(columns[split], split, where)
    rows: dict[str, Rows] = {}
    seen: dict[tuple[str, Any], int] = {}
    for number, cell in enumerate(columns[image]):
        if isinstance(cell, (str, float, type(None))) and _is_empty(cell):
            raise UserError(f"{where}: row {number + 1} has no image in column {image!r}; fill it in or remove the row")
        role = roles[number]
        own, found = rows.setdefault(role, Rows()), locate(cell, role=role)
        key = (role, found if isinstance(found, str) else number)
        if key in seen:
            own.labels[seen[key]] = list(dict.fromkeys([*own.labels[seen[key]], *labels[number]]))
            continue
        seen[key] = len(own)
        own.add(found, labels[number], unknown[number])
    for own in rows.values():  # a repeated row may judge what the first one did not
        judged = zip(own.unknown, own.labels, strict=True)
        own.unknown = [[name for name in unjudged if name not in present] for unjudged, present in judged]
    return rows, names


def _roles(cells: Sequence[Any], column: str, where: str) -> list[str]:
    """The split of each row; an empty cell means `train`."""
    roles = ["train" if _is_empty(cell) else split_of(str(cell)) or "" for cell in cells]
    if "" in roles:
        number = roles.index("")
        raise UserError(
            f"{where}: row {number + 1}: {cells[number]!r} in column {column!r} names no split; write train, "
            "validation or test, or rename the column if it holds something else"
        )
    return roles


def cells_of_labels(cells: Sequence[Any], separator: str | None = None) -> list[list[Any]]:
    """The names in each cell: a list, a list written as text, or names between separators.

    >>> cells_of_labels(["sea; sand", "", "black cat"])
    [['sea', 'sand'], [], ['black cat']]
    >>> cells_of_labels(['["sea", "sand"]', None, ["moon"]])
    [['sea', 'sand'], [], ['moon']]
    """
    texts = [cell for cell in cells if isinstance(cell, str) and not _is_written_list(cell)]
    if separator is None:
        separator = next((s for s in SEPARATORS if any(s in text for text in texts)), None)
    return [[name for name in map(_name, _values(cell, separator)) if name != ""] for cell in cells]


def _values(cell: Any, separator: str | None) -> Sequence[Any]:
    """The labels in a cell; of objects, as detection has them, their names."""
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    if isinstance(cell, Mapping):
        return _values(next((cell[key] for key in OBJECT_KEYS if key in cell), None), None)
    if isinstance(cell, (list, tuple)):
        return [value for item in cell for value in (_values(item, None) if isinstance(item, Mapping) else [item])]
    if _is_empty(cell):
        return ()
    if isinstance(cell, str) and _is_written_list(cell):
        return _literal(cell)
    return cell.split(separator) if separator and isinstance(cell, str) else [cell]


def _is_empty(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and cell.strip().lower() in ("", "nan"))


def _name(value: Any) -> Any:
    """A name; or an id, whose name is found later."""
    return value if isinstance(value, Real) else str(value).strip()


def find_tables(index: ImageIndex, read: Callable[[Path], Columns], options: Options) -> LabelledSet | None:
    """The tables of a folder, or the one that is to be read; `None` if there is none.

    A table's name, or the folder that it stands in, may name its split: `train.csv`, `test/metadata.jsonl`.

    Args:
        index: The files of the folder.
        read: `read_table`, or a form of it that keeps what it read.
        options: Of `table_rows`.

    Raises:
        UserError: See `table_rows`.
    """
    found = index.files(*TABLES)
    named = [path for path in found if path.stem == "metadata"] or found
    files = list(filter(index.split_of, named)) or named
    if len(named) > 1 and files is named:
        files = [path for path in named if lists_images(path, index, read)]
        if len(files) != 1:
            tables = some([path.relative_to(index.root).as_posix() for path in files or named])
            raise UserError(
                f"{index.root}: has several tables, {tables}; give the one that lists the images (root=FILE)"
            )
    splits: dict[str, Rows] = {}
    names: dict[str, None] = {}
    for file in files:
        columns, locate = read(file), partial(index.path, file=file)
        images = options["image_column"] or _image_column(columns, index, file)
        rows, own = table_rows(columns, str(file), locate, **{**options, "image_column": images})
        names |= dict.fromkeys(own)
        for role, part in rows.items():
            target = splits.setdefault(index.split_of(file) or role, Rows())
            for row in zip(part.images, part.labels, part.unknown, strict=True):
                target.add(*row)
    kinds = ", ".join(file.relative_to(index.root).as_posix() for file in files)
    return LabelledSet(f"table ({kinds})", splits, tuple(names)) if files else None


def lists_images(table: Path, index: ImageIndex, read: Callable[[Path], Columns]) -> bool:
    """Whether a table can be read and has a column of images, by its name or by what it names in the folder."""
    try:
        columns = read(table)
    except UserError:
        return False
    is_named = any(column_key(name) in IMAGE_COLUMNS and column_key(name) != "id" for name in columns)
    return is_named or _image_column(columns, index, table) is not None


def _image_column(columns: Columns, index: ImageIndex, file: Path) -> str | None:
    """The column of a usual name whose first cells name images, best by names with a suffix."""
    ranks: dict[str, tuple[bool, int]] = {}
    for name, column in columns.items():
        cells = [cell for cell in column[:20] if isinstance(cell, str) and cell]
        if sum(index.find(cell, file.parent) is not None for cell in cells) * 2 > len(cells):
            usual = [*IMAGE_COLUMNS, column_key(name)].index(column_key(name))
            ranks[name] = not any(Path(cell).suffix for cell in cells), usual
    return min(ranks, key=ranks.__getitem__, default=None)


def find_column(columns: Mapping[str, Any], given: str | None, usual: Sequence[str], where: str, option: str) -> str:
    """The column that is given, or one of a usual name, or the only one.

    Raises:
        UserError: There is none.
    """
    if given is not None:
        if given not in columns:
            raise UserError(f"{where}: there is no column {given!r}; the columns are {', '.join(map(repr, columns))}")
        return given
    by_key = {column_key(name): name for name in reversed(list(columns))}
    found = next((by_key[key] for key in usual if key in by_key), None)
    if found is None and len(columns) == 1:
        found = next(iter(columns))
    if found is None:
        raise UserError(
            f"{where}: cannot tell the column; give {option}=NAME, one of {', '.join(map(repr, columns)) or 'none'}"
        )
    return found


def _flag(cell: Any) -> int | None:
    """1 present, 0 absent, `None` unknown."""
    text = str(cell).strip().lower()
    if text in ("1", "1.0", "true", "yes"):
        return 1
    return 0 if text in ("0", "0.0", "false", "no") else None


def _is_indicator(cells: Sequence[Any]) -> bool:
    texts = {str(cell).strip().lower() for cell in cells}
    known = {"0", "1", "0.0", "1.0", "true", "false"}
    return bool(texts & known) and texts <= known | {"", "-1", "-1.0", "nan", "none"}


def _is_written_list(cell: str) -> bool:
    return cell.startswith("[") and cell.endswith("]")


def _literal(cell: str) -> Sequence[Any]:
    try:
        values = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell[1:-1].split(",")
    return values if isinstance(values, list) else [values]
