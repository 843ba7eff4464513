"""Lists in files: label names and paths, as text, CSV, TSV, JSON or YAML."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ovml.utils.errors import UserError, beginning
from ovml.utils.files import MOST_BYTES, read_text
from ovml.utils.json import load_json
from ovml.utils.yaml import load_yaml, yaml_reason

MOST_PATH = 2**16
"""Bytes of a line that may be a path."""
SUFFIXES = ("", ".txt", ".csv", ".tsv", ".json", ".yaml", ".yml")


def _clean_label(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


class ListKind(NamedTuple):
    """What a list holds, and how it is read.

    Attributes:
        noun: What errors call an entry.
        columns: Column names, or keys of mappings, that entries are found by, best first; compared without case,
            blanks, `_` and `-`.
        ids: Those of their ids.
        clean: Applied to each entry.
        most_bytes: Size of the largest file.
    """

    noun: str
    columns: tuple[str, ...]
    ids: tuple[str, ...]
    clean: Callable[[str], str]
    most_bytes: int


LABELS = ListKind(
    noun="label",
    columns=("displayname", "name", "label", "labels", "class", "classname", "category", "tag", "concept"),
    ids=("id", "labelname", "mid", "classid", "labelid", "index"),
    clean=_clean_label,
    most_bytes=MOST_BYTES,
)
"""Names of labels, in Unicode's normal form C, without blanks around them."""
PATHS = ListKind(
    noun="path",
    columns=("path", "filepath", "imagepath", "image", "images", "img", "file", "filename", "imagefile", "name"),
    ids=(),
    clean=str,  # as it is: a file's name may hold any character
    most_bytes=2**30,  # millions of paths
)
"""Paths of images, as they are."""


class NameList(NamedTuple):
    """What a file lists.

    Attributes:
        names: In the file's order.
        ids: An id of each name; `None` where the file has none.
        source: Where the names were found, such as `names.csv, column 'name'`.
        noun: What they name.
    """

    names: list[str]
    ids: list[str] | None
    source: str
    noun: str = LABELS.noun

    def summary(self) -> str:
        """One line on what was understood.

        >>> NameList(["fish", "moon", "star", "sun"], None, "names.txt").summary()
        '4 labels from names.txt: fish, moon, star, ...'
        """
        shown = ", ".join(map(beginning, self.names[:3])) + (", ..." if len(self.names) > 3 else "")
        return f"{len(self.names):,} {self.noun}{'s' * (len(self.names) != 1)} from {self.source}: {shown}"


def read_list(path: str | Path, kind: ListKind = LABELS) -> NameList:
    """Read names from a file.

    - `.txt` or no suffix: one name per line.
    - `.csv`, `.tsv`: one column of names, or ids and names, separated by `,`, `;` or tabs. A header is recognized by
      its column names (`id,name`, `LabelName,DisplayName`, `class_name`, ...) and chooses the columns.
    - `.json`, `.yaml`: a list of names, a list of mappings with `name` and perhaps `id`, or a mapping of ids to names.

    Args:
        path: The file.
        kind: `LABELS` or `PATHS`.

    Raises:
        UserError: The file is missing, too large, of another suffix, damaged, or not a list of names.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: cannot tell how to read a list from {suffix}; use {', '.join(SUFFIXES[1:])}")
    text = read_text(path, kind.noun, f"one {kind.noun} per line", kind.most_bytes)
    if suffix in (".csv", ".tsv"):
        return _table(text, "\t" if suffix == ".tsv" else None, path, kind)
    if suffix in (".json", ".yaml", ".yml"):
        return _document(text, suffix, path, kind)
    lines = [kind.clean(line) for line in re.split(r"\r\n|\n|\r", text)]
    return NameList([line for line in lines if line], None, path.name, kind.noun)


def read_paths(file: str, tell: Callable[[str], object] = lambda _: None) -> Iterator[str]:
    """Read paths of images from a file, once, so that it may be a pipe.

    Text is read line by line as it is needed, whatever its length; bytes that are not UTF-8 stay as they are, since
    names of files may have them. Tables and documents are read as by `read_list`.

    Args:
        file: A path, or `-` for standard input.
        tell: Called with a line on what was understood of a table or document.

    Raises:
        UserError: On the call: the file cannot be read. Later: it is not text.
    """
    path = Path(file)
    if file != "-" and path.suffix.lower() in SUFFIXES[2:]:
        found = read_list(path, PATHS)
        tell(found.summary())
        return iter(found.names)
    try:
        lines = sys.stdin.buffer if file == "-" else open(path, "rb")  # noqa: SIM115 - read as needed
        first = lines.readline(MOST_PATH)
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            first, lines = (first + lines.read()).decode("utf-16").encode(), io.BytesIO()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: damaged UTF-16 text; save it as UTF-8, one path per line") from error
    rest = iter(lambda: lines.readline(MOST_PATH), b"")
    return _paths(chain(first.removeprefix(codecs.BOM_UTF8).splitlines(), rest), file)


def _paths(lines: Iterable[bytes], file: str) -> Iterator[str]:
    for line in lines:
        if b"\0" in line:
            raise UserError(f"{file}: has a NUL character, so it is not text; save it as UTF-8, one path per line")
        if len(line.rstrip(b"\r\n")) >= MOST_PATH - 3:  # cut there, less a byte order mark
            raise UserError(f"{file}: a line is longer than any path; give text with one path per line")
        if path := os.fsdecode(line.rstrip(b"\r\n")):
            yield path


def _table(text: str, delimiter: str | None, path: Path, kind: ListKind) -> NameList:
    first = next((line for line in re.split(r"[\r\n]+", text, maxsplit=9) if line.strip()), "")
    if delimiter is None:
        delimiter = next((d for d in ",\t;" if d in first), ",")
    lines = csv_rows(text, path, "check the quotes", delimiter)
    rows = [(where, list(map(kind.clean, cells))) for where, cells in lines if any(map(str.strip, cells))]
    columns, source = None, path.name
    if rows and (header := _header(rows[0][1], kind)) is not None:
        columns, titles = header, rows.pop(0)[1]
        source = f"{path.name}, column {titles[columns[-1]].strip()!r}"
    return NameList(*_picked(rows, columns, kind), source, kind.noun)


def csv_rows(text: str, path: Path, advice: str, delimiter: str = ",") -> Iterator[tuple[str, list[str]]]:
    r"""Yield the place, such as `a.csv, line 3`, and the cells of each row of CSV; empty lines are skipped.

    Args:
        text: Content of the file.
        path: The file, for the places.
        advice: What to do if the quotes are wrong.
        delimiter: Between cells.

    Raises:
        UserError: The quotes are wrong.

    >>> list(csv_rows("id,name\n\n1,'cat'", Path("a.csv"), "correct it"))
    [('a.csv, line 1', ['id', 'name']), ('a.csv, line 3', ['1', "'cat'"])]
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if cells:
                yield f"{path}, line {reader.line_num}", cells
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; {advice}") from error


def column_key(title: object) -> str:
    """A column's name as it is compared: without case, blanks, `_` and `-`."""
    return re.sub(r"[\s_-]", "", str(title).lower())


def _header(cells: Sequence[str], kind: ListKind) -> list[int] | None:
    """Columns of ids, if any, and names, where the cells are a header."""
    keys = [column_key(cell) for cell in cells]
    names = [keys.index(key) for key in kind.columns if key in keys]
    ids = [keys.index(key) for key in kind.ids if key in keys]
    if not names:
        return None
    # A row such as `cat,tag` is an id and a name.
    known = len(names) + len(ids) + keys.count("parent")
    if kind.ids and len(cells) > 1 and known < len(cells) and not ids:
        return None
    return [*ids[:1], names[0]]


def _picked(
    rows: Sequence[tuple[str, list[str]]], columns: list[int] | None, kind: ListKind
) -> tuple[list[str], list[str] | None]:
    """Names, and ids where the rows have them."""
    wide = len(columns) > 1 if columns else bool(kind.ids and rows) and len(rows[0][1]) > 1
    is_exact, columns = columns is None, columns or list(range(1 + wide))
    wanted = f"one {kind.noun} alone in every line, or a header with the column {kind.columns[0]!r}"
    if kind.ids:
        wanted = "an id and a name, or one name alone in every line"
    names: list[str] = []
    ids: dict[str, None] = {}
    for where, cells in rows:
        is_short, is_long = len(cells) <= max(columns), is_exact and len(cells) > len(columns)
        if is_short or is_long or not all(cells[column] for column in columns):
            raise UserError(f"{where}: expected {wanted}; got {repr(cells)[:120]}")
        picked = [cells[column] for column in columns]
        if kind is LABELS and re.search("[\r\n]", picked[-1]):
            raise UserError(f"{where}: a name goes over several lines; check the quotes")
        if wide and picked[0] in ids:
            raise UserError(f"{where}: the id {picked[0]!r} is repeated; keep one of its lines")
        ids[picked[0]] = None
        names.append(picked[-1])
    return names, list(ids) if wide else None


def _document(text: str, suffix: str, path: Path, kind: ListKind) -> NameList:
    try:
        content = load_json(text) if suffix == ".json" else load_yaml(text)
    except Exception as error:  # of a damaged document either parser may raise several
        reason = yaml_reason(error)
        raise UserError(f"{path}: not {suffix[1:].upper()} ({reason}); give a list of {kind.noun}s") from error
    items: list[Any] = list(content.items()) if isinstance(content, Mapping) and kind.ids else content
    if not isinstance(items, list):
        raise UserError(f"{path}: expected a list of {kind.noun}s, got a {type(content).__name__}")
    names, ids = [], []
    for position, item in enumerate(items, start=1):
        if isinstance(item, Mapping):
            keys = {column_key(key): value for key, value in item.items()}
            item = tuple(next((keys[k] for k in known if k in keys), None) for known in (kind.ids, kind.columns))
        key, name = item if isinstance(item, tuple) else (None, item)
        if not isinstance(name, str):
            raise UserError(f"{path}: {kind.noun} {position} is {repr(name)[:120]}; {kind.noun}s are strings")
        names.append(kind.clean(name))
        ids += [] if key is None else [str(key)]
    if ids and len(set(ids)) != len(names):
        raise UserError(f"{path}: each {kind.noun} needs an id of its own, or none has one")
    return NameList(names, ids or None, path.name, kind.noun)
