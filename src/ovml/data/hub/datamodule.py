"""Data sets that the `datasets` library reads: from the Hub, a folder, files, or tar shards."""

from __future__ import annotations

import json
import logging
from functools import cached_property
from typing import Any, Literal

import datasets

from ovml.data.base import MultiLabelDataModule, Split
from ovml.data.cache import cached_folder
from ovml.data.hub.load import LoadedSet, cache_folders, load_set
from ovml.data.hub.rows import Columns, RowMaker, check_image_column, stored_rows, streamed_rows
from ovml.data.labels import ColumnPath, LabelReader, as_list, given_names
from ovml.data.paths import PathCheck
from ovml.data.samplers import hold_out
from ovml.utils.errors import UserError, check_whole
from ovml.utils.progress import track
from ovml.vocabulary import LabelVocabulary, check_names, label_key

logger = logging.getLogger(__name__)

ROLES: tuple[Split, ...] = ("train", "validation", "test")


class HubDataModule(MultiLabelDataModule):
    """A data set with a column of images and a column of labels.

    A row's labels are a list of ids or names, a single one, null for none, or (`label_format: indicator`) a vector
    with 1 for each label present and 0 for the others. Ids index the names of a `ClassLabel` column or, for other
    columns, `labels` followed by `unseen`. Case and blanks of names are ignored.

    Images are neither decoded nor copied: the labels are read once, cached, and put beside the image column.

    Args:
        path: Name on the Hub; a folder of images, Parquet or Arrow files; a folder that `save_to_disk` wrote; or a
            file type (`parquet`, `webdataset`, ...) with `data_files`.
        name: Configuration, if the set has several.
        data_files: Files of each split, or of the training split.
        image_column: Column of images, or of their paths or bytes.
        label_column: Column of the labels present; `json.labels` is the value `labels` in a column of JSON.
        negative_column: Column of the labels verified absent; for sets that are not exhaustive.
        id_column: Column of the image names. Default: `__key__` (WebDataset), else the row number or, in a stream, the
            image's file name or a digest of its bytes.
        splits: The set's names for `train`, `validation` and `test`. Default: the same. Without a validation split the
            test split is used, as in published code.
        labels: Seen labels, or a text file with one per line. Default: the names of a `ClassLabel` column, else
            all names in the training split except the unseen ones, sorted.
        unseen: Unseen labels, or a text file of them.
        label_format: `list` or `indicator`.
        unknown_labels: Whether a label outside the vocabulary is an `error` or is skipped (`skip`), with a count in
            the log unless the set is streamed.
        exhaustive: Whether labels that a row does not list are absent; otherwise they are unknown.
        validation_size: Number of training rows to hold out for validation, the same ones in every run.
        streaming: Read rows as they are needed, without preparing the set on disk.
        streamed_rows: Number of rows of a streamed training split: the length of an epoch. Default: the set's metadata.
        shuffle_buffer: Size of the shuffle buffer of a streamed training split, in rows.
        cache_dir: Cache folder of the set and its labels. Default: the cache of `datasets`.
        allow_urls: Ask servers for images whose rows hold an address instead of an image.
        allow_outside: Read images whose paths leave the folders of the set too.
        kwargs: See `MultiLabelDataModule`.

    Raises:
        UserError: Arguments contradict each other or are out of range. Errors of the set itself are raised when it is
            first read.

    Example:
        ```yaml
        data:
          class_path: ovml.data.HubDataModule
          init_args:
            path: someone/birds
            label_column: species
            unseen: [kingfisher, wren]
        ```
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        data_files: dict[str, str | list[str]] | list[str] | str | None = None,
        image_column: str = "image",
        label_column: str = "labels",
        negative_column: str | None = None,
        id_column: str | None = None,
        splits: dict[str, str] | None = None,
        labels: list[str] | str | None = None,
        unseen: list[str] | str | None = None,
        label_format: Literal["list", "indicator"] = "list",
        unknown_labels: Literal["error", "skip"] = "error",
        exhaustive: bool = True,
        validation_size: int | None = None,
        streaming: bool = False,
        streamed_rows: int | None = None,
        shuffle_buffer: int = 1000,
        cache_dir: str | None = None,
        allow_urls: bool = False,
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_whole(self, 1, validation_size=validation_size, streamed_rows=streamed_rows)
        check_whole(self, 0, shuffle_buffer=shuffle_buffer)
        for role in splits or {}:
            if role not in ROLES:
                raise UserError(f"data.splits: {role!r} is none of {', '.join(ROLES)}")
        if negative_column and exhaustive:
            raise UserError(
                "data.negative_column has no effect if labels that are not listed are absent; add exhaustive=false"
            )
        if validation_size and streaming:
            raise UserError("data.validation_size: a stream cannot be split; name a split in data.splits")
        self.path, self.name, self.data_files = path, name, data_files
        self.image_column, self.label_column = image_column, label_column
        self.negative_column, self.id_column = negative_column, id_column
        self.splits = splits or {}
        self.labels, self.unseen = labels, unseen
        self.label_format, self.unknown_labels = label_format, unknown_labels
        self.exhaustive = exhaustive
        self.validation_size = validation_size
        self.streaming, self.streamed_rows, self.shuffle_buffer = streaming, streamed_rows, shuffle_buffer
        self.cache_dir = cache_dir
        self.allow_outside, self.allow_urls = allow_outside, allow_urls
        self._rows: dict[str, Any] = {}
        self._columns: dict[str, Columns] = {}

    @cached_property
    def source(self) -> LoadedSet:
        """The set as it is."""
        return load_set(self.path, self.name, self.data_files, self.streaming, self.cache_dir)

    @cached_property
    def path_check(self) -> PathCheck:
        """Where images that are paths may be: beside the set's files, and in downloads."""
        folders = [*self.source.folders, *cache_folders(self.cache_dir)]
        return PathCheck(folders, self.allow_outside, self.allow_urls)

    @cached_property
    def vocabulary(self) -> LabelVocabulary:
        """The labels given, else those of the set."""
        unseen = given_names(self.unseen, "unseen")
        seen = given_names(self.labels, "labels")
        known = self._columns_of(self._own_split("train")).labels.names
        if not seen:
            keys = set(map(label_key, unseen))
            seen = tuple(name for name in known or self._collected_names() if label_key(name) not in keys)
        if known:
            keys = set(map(label_key, known))
            for name in (*seen, *unseen):
                if label_key(name) not in keys:
                    raise UserError(
                        f"{self.path}: label {name!r} is none of the {len(known)} labels of column "
                        f"{self.label_column!r}; correct it, or remove it from labels and unseen"
                    )
        return LabelVocabulary(seen, unseen)

    def dataset(self, split: Split) -> datasets.Dataset | datasets.IterableDataset:
        """Rows of one split; a `datasets.IterableDataset` if the set is streamed."""
        own = self._own_split(split)
        rows = self._split_rows(own)
        if self.streaming:
            if split == "train" and self.streamed_rows is None:
                self.streamed_rows = self.source.num_rows.get(own)
            return rows
        if len(rows) == 0:
            raise UserError(f"{self.path}: split {own!r}, the {split} split, has no row")
        if self.validation_size and own == self._own_split("train"):
            return rows.select(hold_out(len(rows), self.validation_size, split))
        return rows

    def prepare_data(self) -> None:
        """Download the set and read its labels, once per machine."""
        for split in ROLES:
            if self._find_split(split):
                self.dataset(split)

    def _find_split(self, split: Split) -> str | None:
        if split == "validation" and self.validation_size:
            return self._find_split("train")
        name = self.splits.get(split, split)
        if name in self.source.splits:
            return name
        if split in self.splits:
            raise UserError(f"{self.path}: data.splits: there is no split {name!r}{self._has_splits}")
        return self._find_split("test") if split == "validation" else None

    def _own_split(self, split: Split) -> str:
        name = self._find_split(split)
        if name is None:
            held_out = " or hold training rows out (validation_size=N)" if split == "validation" else ""
            raise UserError(
                f"{self.path}: there is no {split} split{self._has_splits}; name one in data.splits{held_out}"
            )
        if split == "validation" and name != self.splits.get(split, split):
            logger.info(
                "%s: validation is on %s", self.path, "held-out training rows" if self.validation_size else name
            )
        return name

    @property
    def _has_splits(self) -> str:
        return f", only {', '.join(map(repr, self.source.splits))}"

    def _split_rows(self, name: str) -> Any:
        """Rows of one of the set's own splits."""
        if name not in self._rows:
            columns, where = self._columns_of(name), f"{self.path}: split {name!r}"
            indicator, skip = self.label_format == "indicator", self.unknown_labels == "skip"
            names = columns.labels.names
            negative_names = (columns.negative and columns.negative.names) or names
            readers = (LabelReader(self.vocabulary, ids, indicator, skip) for ids in (names, negative_names))
            maker = RowMaker(columns, where, *readers)
            rows = self.source.splits[name]
            if self.streaming:
                self._rows[name] = streamed_rows(rows, columns.image, columns.others, maker, self.path_check, where)
            else:
                settings = {
                    "rows": [self.source.key, rows._fingerprint],
                    "columns": repr(columns),
                    "labels": [self.vocabulary.names, indicator, skip],
                }
                table = stored_rows(rows, maker, self.cache_dir, "hub", settings)
                self.path_check.check_images(table.rows.data.column("image"), where)
                self._rows[name] = table.rows
                for what, number in table.counts.items():
                    logger.warning("%s: %s %s", where, f"{number:,}", what)
        return self._rows[name]

    def _columns_of(self, name: str) -> Columns:
        """The columns of one of the set's own splits."""
        if name not in self._columns:
            rows, where = self.source.splits[name], f"{self.path}: split {name!r}"
            # A stream may not know its columns before its first row; then their types stay unknown.
            features = dict(rows.features) if rows.features is not None else dict.fromkeys(next(iter(rows), {}))

            def find(dotted: str | None, option: str) -> ColumnPath | None:
                return ColumnPath.find(dotted, features, f"{where}: data.{option}") if dotted else None

            self._columns[name] = Columns(
                check_image_column(self.image_column, features, where),
                ColumnPath.find(self.label_column, features, f"{where}: data.label_column"),
                find(self.negative_column, "negative_column"),
                find(self.id_column or ("__key__" if "__key__" in features else None), "id_column"),
            )
        return self._columns[name]

    def _collected_names(self) -> tuple[str, ...]:
        """All names in the training split, sorted; read once and cached."""
        name = self._own_split("train")
        path, where = self._columns_of(name).labels, f"{self.path}: split {name!r}"
        settings = {"rows": self.source.key, "split": name, "labels": repr(path)}
        with cached_folder(self.cache_dir, "hub-names", [], settings) as (folder, aside):
            if aside is not None:
                found: dict[str, str] = {}
                rows = self.source.splits[name].select_columns([path.column])
                for row in track(rows, "collecting label names"):
                    for label in as_list(path.value(row, where)):
                        if not isinstance(label, str) or self.label_format == "indicator":
                            raise UserError(
                                f"{where}: column {self.label_column!r} holds ids without names; "
                                "give the names in the order of the ids (labels=FILE)"
                            )
                        found[label_key(label)] = min(label, found.get(label_key(label), label))
                (aside / "names.json").write_text(json.dumps(sorted(found.values())))
        return check_names(json.loads((folder / "names.json").read_text()), where=f"{where}: {self.label_column}")
