"""Lists in files: label names and paths, as text, CSV, TSV, JSON or YAML."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ovml.utils.errors import UserError
from ovml.utils.files import read_text

NAME_COLUMNS = ("displayname", "name", "label", "labels", "class", "classname", "category", "tag", "concept")
ID_COLUMNS = ("id", "labelname", "mid", "classid", "labelid", "index")
"""Column names that a header is recognized by, without case, blanks, `_` and `-`, best first."""
SUFFIXES = ("", ".txt", ".csv", ".tsv", ".json", ".yaml", ".yml")


class NameList(NamedTuple):
    """What a file lists.

    Attributes:
        names: In the file's order, in Unicode's normal form C.
        ids: An id of each name; `None` where the file has none.
        source: Where the names were found, such as `names.csv, column 'name'`.
    """

    names: list[str]
    ids: list[str] | None
    source: str

    def summary(self) -> str:
        """One line on what was understood.

        >>> NameList(["fish", "moon", "star", "sun"], None, "names.txt").summary()
        '4 labels from names.txt: fish, moon, star, ...'
        """
        shown = ", ".join(self.names[:3]) + (", ..." if len(self.names) > 3 else "")
        return f"{len(self.names):,} label{'s' * (len(self.names) != 1)} from {self.source}: {shown}"


def read_list(path: str | Path) -> NameList:
    """Read names from a file.

    - `.txt` or no suffix: one name per line.
    - `.csv`, `.tsv`: one column of names, or ids and names, separated by `,`, `;` or tabs. A header is recognized by
      its column names (`id,name`, `LabelName,DisplayName`, `class_name`, ...) and chooses the columns.
    - `.json`, `.yaml`: a list of names, a list of mappings with `name` and perhaps `id`, or a mapping of ids to names.

    Raises:
        UserError: The file is missing, too large, of another suffix, damaged, or not a list of names.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: cannot tell how to read a list from {suffix}; use {', '.join(SUFFIXES[1:])}")
    text = read_text(path, "label", "one name per line")
    if suffix in (".csv", ".tsv"):
        return _table(text, "\t" if suffix == ".tsv" else None, path)
    if suffix in (".json", ".yaml", ".yml"):
        return _document(text, suffix, path)
    lines = [unicodedata.normalize("NFC", line.strip()) for line in re.split(r"\r\n|\n|\r", text)]
    return NameList([line for line in lines if line], None, path.name)


def read_paths(file: str) -> Iterator[str]:
    """Read paths of images from a file, once, so that it may be a pipe.

    Text is read line by line as it is needed, whatever its length; bytes that are not UTF-8 stay as they are, since
    names of files may have them. The other forms are read as by `read_list`.

    Args:
        file: A path, or `-` for standard input.

    Raises:
        UserError: On the call: the file cannot be read. Later: it is not text.
    """
    path = Path(file)
    if file != "-" and path.suffix.lower() in SUFFIXES[2:]:
        return iter(read_list(path).names)
    try:
        lines = sys.stdin.buffer if file == "-" else open(path, "rb")  # noqa: SIM115 - read as needed
        first = lines.readline()
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            first, lines = (first + lines.read()).decode("utf-16").encode(), io.BytesIO()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: damaged UTF-16 text; save it as UTF-8, one path per line") from error
    return _paths(chain(first.removeprefix(codecs.BOM_UTF8).splitlines(), lines), file)


def _paths(lines: Iterable[bytes], file: str) -> Iterator[str]:
    for line in lines:
        if b"\0" in line:
            raise UserError(f"{file}: has a NUL character, so it is not text; save it as UTF-8, one path per line")
        if path := os.fsdecode(line.rstrip(b"\r\n")):
            yield path


def _table(text: str, delimiter: str | None, path: Path) -> NameList:
    first = next((line for line in text.splitlines() if line.strip()), "")
    if delimiter is None:  # the comma, unless the first line has none and is separated by another
        delimiter = next((d for d in ("," if "," in first else "", "\t", ";") if d and d in first), ",")
    reader, rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, [unicodedata.normalize("NFC", cell.strip()) for cell in cells]))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; check the quotes") from error
    columns, source = None, path.name
    if rows and (header := _header(rows[0][1])) is not None:
        columns, titles = header, rows.pop(0)[1]
        source = f"{path.name}, column {titles[columns[-1]]!r}"
    return NameList(*_picked(rows, columns, path), source)


def _header(cells: Sequence[str]) -> list[int] | None:
    """Columns of ids, if any, and names, where the cells are a header."""
    keys = [re.sub(r"[\s_-]", "", cell.lower()) for cell in cells]
    names = [keys.index(key) for key in NAME_COLUMNS if key in keys]
    ids = [keys.index(key) for key in ID_COLUMNS if key in keys]
    if len(cells) == 1 and names:
        return names
    if not names or (len(names) + len(ids) < len(cells) and not ids):
        return None
    return [*ids[:1], names[0]]


def _picked(
    rows: Sequence[tuple[int, list[str]]], columns: list[int] | None, path: Path
) -> tuple[list[str], list[str] | None]:
    """Names, and ids where the rows have them."""
    wide = len(columns) > 1 if columns else bool(rows) and len(rows[0][1]) > 1
    names: list[str] = []
    ids: dict[str, str] = {}
    for line, cells in rows:
        where = f"{path}, line {line}"
        if columns is None:
            fits = len(cells) == 1 + wide and "" not in cells
            picked = cells
        else:
            fits = len(cells) > max(columns) and all(cells[column] for column in columns)
            picked = [cells[column] for column in columns] if fits else cells
        if not fits:
            raise UserError(f"{where}: expected an id and a name, or one name alone in every line; got {cells!r}")
        if "\n" in picked[-1] or "\r" in picked[-1]:
            raise UserError(f"{where}: a name goes over several lines; check the quotes")
        if wide and picked[0] in ids:
            raise UserError(f"{where}: the id {picked[0]!r} is repeated; keep one of its lines")
        if wide:
            ids[picked[0]] = picked[-1]
        names.append(picked[-1])
    return names, list(ids) if wide else None


def _document(text: str, suffix: str, path: Path) -> NameList:
    try:
        if suffix == ".json":
            content = json.loads(text)
        else:
            import yaml

            content = yaml.safe_load(text)
    except Exception as error:  # of a damaged document either parser may raise several
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not {suffix[1:].upper()} ({reason}); give a list of label names") from error
    items: list[Any] = list(content.items()) if isinstance(content, Mapping) else content
    if not isinstance(items, list):
        raise UserError(f"{path}: expected a list of label names, got a {type(content).__name__}")
    names, ids = [], []
    for position, item in enumerate(items):
        if isinstance(item, Mapping):
            keys = {re.sub(r"[\s_-]", "", str(key).lower()): value for key, value in item.items()}
            item = (next((keys[k] for k in ID_COLUMNS if k in keys), None), keys.get("name", keys.get("label")))
        key, name = item if isinstance(item, tuple) else (None, item)
        if not isinstance(name, str):
            raise UserError(f"{path}: label {position} is {name!r}; label names are strings")
        names.append(unicodedata.normalize("NFC", name.strip()))
        ids += [] if key is None else [str(key)]
    if ids and len(set(ids)) != len(names):
        raise UserError(f"{path}: each label needs an id of its own, or none has one")
    return NameList(names, ids or None, path.name)
