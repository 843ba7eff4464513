"""Reads an annotation file of class names and labelled images; checked once, then cached as Arrow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ovml.data.cache import cached_table
from ovml.utils.errors import UserError, error_at, first_line
from ovml.utils.json import load_json, shown
from ovml.utils.progress import track
from ovml.vocabulary import check_names, label_key

FORM = '{"classes": ["name", ...], "images": [["path", ["name", ...]], ...]}'


ROWS = datasets.Features({"path": datasets.Value("string"), "labels": datasets.LargeList(datasets.Value("int32"))})


@dataclass(frozen=True)
class AnnotationFile:
    """Content of an annotation file.

    Attributes:
        path: The file.
        classes: Labels annotated in every row: present if listed, else absent.
        others: Labels in rows that are none of the classes, with the index of the first such row.
        repeated: Number of rows that repeat an image.
        rows: Columns `path` (string, without the prefix) and `labels` (lists of indices into the
            classes, then the others), memory-mapped.
    """

    path: Path
    classes: tuple[str, ...]
    others: dict[str, int]
    repeated: int
    rows: pa.Table


def read_annotation_file(file: Path, cache_dir: str | Path | None, strip_prefix: str = "") -> AnnotationFile:
    """Read a file of the form `{"classes": [...], "images": [["path", ["label", ...]], ...]}`.

    Repeated labels of a row and repeated rows count once. Case and blanks of labels are ignored.

    Args:
        file: The file.
        cache_dir: See `ovml.data.cache.cache_root`.
        strip_prefix: Folder to remove from the front of the paths.

    Raises:
        UserError: The file is missing or malformed; the message names the place.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such annotation file; it holds {FORM}")

    def make(about: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        parser = _Parser(file, strip_prefix)
        rows = parser.parse()
        about |= {"classes": parser.classes, "others": parser.others, "repeated": parser.repeated}
        columns = {"path": pa.array(rows), "labels": pa.array(rows.values(), pa.large_list(pa.int32()))}
        yield from pa.table(columns, ROWS.arrow_schema).to_batches(max_chunksize=1 << 16)

    table = cached_table(cache_dir, "json-file", [file], {"strip_prefix": strip_prefix}, make, ROWS)
    about = table.counts
    return AnnotationFile(file, tuple(about["classes"]), about["others"], about["repeated"], table.rows.data.table)


class _Parser:
    """Reads a file row by row; errors name the place."""

    def __init__(self, file: Path, strip_prefix: str) -> None:
        self.file = file
        self.prefix = strip_prefix.rstrip("/") + "/" if strip_prefix else ""

    def parse(self) -> dict[str, tuple[int, ...]]:
        """Labels by path."""
        content = self._load()
        self.classes = check_names(content["classes"], where=f"{self.file}: classes")
        self.number = {name: place for place, name in enumerate(self.classes)}
        self.number_of_key = {label_key(name): place for place, name in enumerate(self.classes)}
        self.others: dict[str, int] = {}
        images = content["images"]
        if not images:
            raise UserError(f"{self.file}: images: the list is empty; give at least one image")
        rows: dict[str, tuple[int, ...]] = {}
        for place, item in enumerate(track(images, f"reading {self.file.name}", total=len(images))):
            path, labels = self._row(place, item)
            if rows.setdefault(path, labels) != labels:
                first = next(i for i, other in enumerate(images) if self._path(other[0]) == path)
                raise UserError(
                    f"{self.file}: images[{place}]: {path} has other labels than at images[{first}]; keep one of them"
                )
        if self.prefix and not any(item[0].startswith(self.prefix) for item in images):
            raise UserError(
                f"{self.file}: no image's path begins with strip_prefix={self.prefix!r}; the first is {images[0][0]!r}"
            )
        self.repeated = len(images) - len(rows)
        return rows

    def _load(self) -> dict[str, list[Any]]:
        try:
            with open(self.file, encoding="utf-8-sig") as file, error_at(self.file):
                content = load_json(file.read())
        except OSError as error:
            raise UserError(f"{self.file}: cannot read the annotation file ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{self.file}: not UTF-8 text; save the annotations as UTF-8") from error
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.file}: not JSON ({first_line(error)}); it must hold {FORM}") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.file}: expected {FORM}, got {shown(content)}")
        for key in ("classes", "images"):
            if not isinstance(content.get(key), list):
                got = f"got {shown(content[key])}" if key in content else "it is missing"
                raise UserError(f"{self.file}: {key}: expected a list, {got}; the file must hold {FORM}")
        return content

    def _row(self, place: int, item: Any) -> tuple[str, tuple[int, ...]]:
        match item:
            case [str(path), [*labels]] if path:
                try:
                    path.encode()
                    return self._path(path), tuple(sorted({self._number(label, place) for label in labels}))
                except UnicodeEncodeError:
                    pass
        raise UserError(
            f'{self.file}: images[{place}]: expected ["path", ["label", ...]], got {shown(item)}; correct the row'
        )

    def _path(self, path: str) -> str:
        return os.path.normpath(path.removeprefix(self.prefix))

    def _number(self, label: Any, place: int) -> int:
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"{self.file}: images[{place}]: label {shown(label)} is not a name; correct the row")
        number = self.number.get(label)
        if number is None:
            label.encode()
            key = label_key(label)
            if key not in self.number_of_key:
                self.number_of_key[key] = len(self.number_of_key)
                self.others[label.strip()] = place
            number = self.number[label] = self.number_of_key[key]
        return number
