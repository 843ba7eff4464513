"""Data sets in JSON files of classes and images: one file for training, one each for the ZSL and GZSL tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovml.data.base import Split
from ovml.data.cache import Table, cached_table, ragged, record_batch
from ovml.data.folder import FolderDataModule
from ovml.data.json.file import AnnotationFile, read_annotation_file
from ovml.data.labels import some
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary, label_key

logger = logging.getLogger(__name__)

Columns = np.ndarray[Any, np.dtype[np.int64]]

CHUNK = 4096
"""Number of rows that are made at once."""

REPEATED = "rows that repeat an image"
IGNORED = "labels that are none of the file's classes"
ZSL_ALONE = "images of the ZSL file only"
GZSL_ALONE = "images of the GZSL file only"


class JSONDataModule(FolderDataModule):
    """Images listed in JSON files, the form in which later open-vocabulary work publishes COCO, NUS-WIDE and others.

    A file holds `{"classes": ["cat", ...], "images": [["path", ["cat", ...]], ...]}`. Of its own classes, those that a
    row lists are present and the others absent. Labels that are classes of another file only are skipped and counted,
    as in published readers.

    The classes of the training file are the seen labels. Those of the ZSL file are the unseen ones, and those of the
    GZSL file both, in any order. Without a ZSL file the unseen labels are the GZSL file's other classes.

    All evaluation protocols use one test split: the images of the GZSL file, with every label known, then the images
    that only the ZSL file lists, whose seen labels are unknown and count in no metric. So ZSL metrics are over the
    images of both files, and a warning says so if the lists differ. For ZSL metrics over the ZSL file only, omit
    `gzsl_file`.

    Labels that rows do not list are absent (`exhaustive`) if every evaluation image has annotations for every label.
    Otherwise the cache lists the absent labels of each row, of the training split too, at 4 bytes per image and label.
    This happens without a GZSL file, with images that only the ZSL file lists, with a validation file of some classes
    only, and with training images held out for validation, whose unseen labels are not annotated.

    Args:
        root: Folder of relative paths of images and files.
        train_file: Training images; its classes are the seen labels.
        zsl_file: Test images with unseen labels.
        gzsl_file: Test images with seen and unseen labels.
        validation_file: Validation images. Default: see `validation_size` of `FolderDataModule`.
        strip_prefix: Folder to remove from the front of the image paths: their folder on the machine that wrote the
            files.
        kwargs: See `FolderDataModule` and `MultiLabelDataModule`.

    Raises:
        UserError: There is no such folder, or no test file is given. Reading a file raises one too, with the place of
            the error: the file is missing or malformed, a class is repeated or both seen and unseen, a label is in no
            class list, an image is listed twice with different labels, or no image is listed.

    Example:
        ```yaml
        data:
          class_path: ovml.data.JSONDataModule
          init_args:
            root: /data/coco
            train_file: train.json
            gzsl_file: test.json
        ```
    """

    title = "the data set"

    def __init__(
        self,
        root: str,
        train_file: str,
        zsl_file: str | None = None,
        gzsl_file: str | None = None,
        validation_file: str | None = None,
        strip_prefix: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        if not (zsl_file or gzsl_file):
            raise UserError("a test file is needed: give zsl_file=FILE, gzsl_file=FILE or both")
        files = {"train": train_file, "zsl": zsl_file, "gzsl": gzsl_file, "validation": validation_file}
        self.paths = {role: self.root / Path(file).expanduser() for role, file in files.items() if file}
        self.strip_prefix = strip_prefix
        self.has_validation = validation_file is not None
        self.path_check.advice = "remove the folder of another machine (strip_prefix=FOLDER)"

    @cached_property
    def files(self) -> dict[str, AnnotationFile]:
        """Content of the files by their role: train, zsl, gzsl, validation."""
        files = {}
        for role, path in self.paths.items():
            files[role] = read_annotation_file(path, self.cache_dir, self.strip_prefix)
            self.path_check.check_all(files[role].rows["path"], str(path))
        return files

    @cached_property
    def vocabulary(self) -> LabelVocabulary:
        """The training file's classes, then the unseen ones."""
        train, zsl, gzsl = self.files["train"], self.files.get("zsl"), self.files.get("gzsl")
        unseen = zsl.classes if zsl else _without(gzsl.classes if gzsl else (), train.classes)
        alone = _without(zsl.classes, train.classes) if zsl else ()
        if zsl and (both := _without(zsl.classes, alone)):
            raise UserError(
                f"{zsl.path}: {some(both)} of its classes are also in {train.path}; "
                "unseen classes must not be trained on, remove them from one of the files"
            )
        names = (*train.classes, *unseen)
        if gzsl and (missing := _without(names, gzsl.classes)):
            raise UserError(f"{gzsl.path}: its classes lack {some(missing)}; list all seen and unseen classes")
        for file in self.files.values():
            if extra := _without(file.classes, names):
                raise UserError(
                    f"{file.path}: {some(extra)} of its classes are in no other class list; "
                    f"add them to {(zsl or gzsl or train).path} or remove them"
                )
            for label in _without(tuple(file.others), names):
                raise UserError(
                    f"{file.path}: images[{file.others[label]}]: label {label!r} is in no class list; "
                    "correct it or add it to the classes"
                )
        return LabelVocabulary(train.classes, unseen)

    @cached_property
    def exhaustive(self) -> bool:  # type: ignore[override]
        """Whether every evaluation image has annotations for every label."""
        if self.validation_size and self.vocabulary.unseen:
            return False
        parts = self._parts("test") + (self._parts("validation") if self.has_validation else [])
        return all(len(file.classes) == len(self.vocabulary) for file, _ in parts)

    def read_annotations(self, split: Split) -> Table:
        """Rows of a split; made once from the cached files."""
        settings = {"root": os.path.abspath(self.root), "strip": self.strip_prefix, "exhaustive": self.exhaustive}
        inputs = [file.path for file in self.files.values()]

        def make(counts: dict[str, int]) -> Iterator[pa.RecordBatch]:
            if split == "test" and {"zsl", "gzsl"} <= self.files.keys():
                self._compare_test_files(self.files["zsl"], self.files["gzsl"], counts)
            for file, rows in self._parts(split):
                counts[REPEATED] = counts.get(REPEATED, 0) + file.repeated
                yield from self._batches(file, rows, counts)

        table = cached_table(self.cache_dir, f"json-{split}", inputs, settings, make)
        if split == "test" and (table.counts.get(ZSL_ALONE) or table.counts.get(GZSL_ALONE)):
            logger.warning(
                "%s lists %s images that %s does not, which lists %s others; every protocol uses the images of both",
                *(self.paths["zsl"], f"{table.counts[ZSL_ALONE]:,}"),
                *(self.paths["gzsl"], f"{table.counts[GZSL_ALONE]:,}"),
            )
        return table

    def _parts(self, split: Split) -> list[tuple[AnnotationFile, pa.Table]]:
        """Files of a split, each with the rows to use."""
        roles = ("gzsl", "zsl") if split == "test" else (split,)
        parts = [(self.files[role], self.files[role].rows) for role in roles if role in self.files]
        if len(parts) > 1:
            (_, gzsl), (file, zsl) = parts
            alone = zsl.filter(pc.invert(pc.is_in(zsl["path"], gzsl["path"].combine_chunks())))
            parts[1:] = [(file, alone)] if len(alone) else []
        return parts

    def _compare_test_files(self, zsl: AnnotationFile, gzsl: AnnotationFile, counts: dict[str, int]) -> None:
        """Count the images that only one file lists; check that the others have the same unseen labels in both."""
        place = pc.index_in(zsl.rows["path"], gzsl.rows["path"].combine_chunks()).combine_chunks()
        shared = pc.is_valid(place)
        counts[ZSL_ALONE] = place.null_count
        counts[GZSL_ALONE] = len(gzsl.rows) - (len(place) - place.null_count)
        width, first_unseen = len(self.vocabulary), len(self.vocabulary.seen)
        found = []
        for file, table in ((zsl, zsl.rows.filter(shared)), (gzsl, gzsl.rows.take(place.drop_null()))):
            rows, columns, _ = self._present(file, table)
            found.append((rows * width + columns)[columns >= first_unseen])
        for pair in np.setxor1d(found[0], found[1])[:1]:
            row, column = divmod(int(pair), width)
            path = zsl.rows["path"].filter(shared)[row].as_py()
            raise UserError(
                f"{zsl.path} and {gzsl.path} disagree whether {path} shows {self.vocabulary.names[column]!r}; "
                "correct one of them"
            )

    def _batches(self, file: AnnotationFile, table: pa.Table, counts: dict[str, int]) -> Iterator[pa.RecordBatch]:
        root, known = os.path.abspath(self.root), np.zeros(len(self.vocabulary), dtype=bool)
        known[self._columns(file)[: len(file.classes)]] = True
        for start in range(0, len(table), CHUNK):
            chunk = table.slice(start, CHUNK)
            rows, columns, ignored = self._present(file, chunk)
            counts[IGNORED] = counts.get(IGNORED, 0) + ignored
            positive = ragged(rows, columns, len(chunk))
            negative = None
            if not self.exhaustive:
                absent = np.tile(known, (len(chunk), 1))
                absent[rows, columns] = False
                row, column = np.nonzero(absent)
                negative = ragged(row, column, len(chunk))
            paths = chunk["path"].to_pylist()
            yield record_batch([os.path.join(root, path) for path in paths], positive, negative, paths)

    def _columns(self, file: AnnotationFile) -> Columns:
        """The vocabulary's column of each of the file's names; -1 for names that are none of its classes."""
        column = {label_key(name): i for i, name in enumerate(self.vocabulary.names)}
        classes = [column[label_key(name)] for name in file.classes]
        return np.array([*classes, *[-1] * len(file.others)], dtype=np.int64)

    def _present(self, file: AnnotationFile, table: pa.Table) -> tuple[Columns, Columns, int]:
        """Rows and columns of the labels present, in order, and the number of labels that are none of the classes."""
        rows = pc.list_parent_indices(table["labels"]).to_numpy().astype(np.int64)
        columns = self._columns(file)[pc.list_flatten(table["labels"]).to_numpy()]
        order = np.lexsort((columns, rows))
        order = order[columns[order] >= 0]
        return rows[order], columns[order], len(columns) - len(order)


def _without(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    keys = set(map(label_key, others))
    return tuple(name for name in names if label_key(name) not in keys)
