"""Any data set that the `datasets` library reads: from the Hub, a folder, files, or tar shards."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ovml.data.base import MultiLabelDataModule, Split
from ovml.data.cache import cached_folder
from ovml.data.hub.labels import ColumnPath, LabelReader, as_list, class_names
from ovml.data.hub.load import LoadedSet, load_set
from ovml.data.hub.rows import Columns, RowMaker, check_image_column, stored_rows, streamed_rows
from ovml.utils.errors import UserError
from ovml.utils.progress import track
from ovml.vocabulary import LabelVocabulary, check_names, label_key, read_names

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

ROLES: tuple[Split, ...] = ("train", "validation", "test")


class HubDataModule(MultiLabelDataModule):
    """A data set with a column of pictures and a column of labels.

    A row's labels are a list of ids or names, a single one, null for none, or (`label_format: indicator`) a vector
    with 1 for each label present and 0 for the others. Ids number the names of a `ClassLabel` column or, where the
    column is none, those of `labels` followed by `unseen`. Case and blanks of names do not count.

    Pictures are neither decoded nor copied: the labels are read once, kept, and set beside the pictures' column.

    Args:
        path: Name on the Hub; a folder of pictures, Parquet or Arrow files; a folder that `save_to_disk` wrote; or a
            file type (`parquet`, `webdataset`, ...) with `data_files`.
        name: Configuration, where the set has several.
        data_files: Files of each split, or of the training split.
        image_column: Pictures, or their paths or bytes.
        label_column: Labels present; `json.labels` is the value `labels` in a column of JSON.
        negative_column: Labels that were verified to be absent; for sets that are not exhaustive.
        id_column: Names of the pictures. Default: `__key__`, which WebDataset has, else the row's number or, of a
            stream, the picture's file name or a digest of its bytes.
        splits: The set's own names for `train`, `validation` and `test`. Default: the same. Without a validation
            split the test split serves, as published code does.
        labels: Seen labels, or a text file of them, one a line. Default: the names of a `ClassLabel` column, else
            all names in the training split, sorted, without the unseen ones.
        unseen: Unseen labels, or a text file of them.
        label_format: `list` or `indicator`.
        unknown_labels: Whether a label outside the vocabulary is an `error` or is left out (`skip`), with a count
            in the log unless the set is streamed.
        exhaustive: Whether labels that a row does not list are absent, else they are unknown.
        validation_size: Training rows that are held out for validation, drawn once and the same in every run.
        streaming: Read rows when they are needed rather than prepare the set on disk.
        streamed_rows: Rows of a streamed training split: the length of an epoch. Default: what the set says of itself.
        shuffle_buffer: Rows among which the shuffling of a streamed training split draws.
        cache_dir: Where the set and its labels are kept. Default: that of `datasets`.
        kwargs: See `MultiLabelDataModule`.

    Raises:
        UserError: Arguments contradict each other. What is wrong with the set is said when it is first read.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for role in splits or {}:
            if role not in ROLES:
                raise UserError(f"data.splits: {role!r} is none of {', '.join(ROLES)}")
        if negative_column and exhaustive:
            raise UserError(
                "data.negative_column has no effect where labels that are not listed are absent; "
                "add --data.exhaustive false"
            )
        if validation_size and streaming:
            raise UserError("data.validation_size: a stream cannot be parted; name a split (--data.splits)")
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
        self._rows: dict[str, Any] = {}
        self._layouts: dict[str, tuple[Columns, tuple[str, ...] | None]] = {}

    @cached_property
    def source(self) -> LoadedSet:
        """The set as it is."""
        return load_set(self.path, self.name, self.data_files, self.streaming, self.cache_dir)

    @cached_property
    def vocabulary(self) -> LabelVocabulary:
        """The labels that were asked for, else those that the set has."""
        unseen = _names(self.unseen, "unseen")
        seen = _names(self.labels, "labels")
        _, known = self._layout(self._own_split("train"))
        if not seen:
            keys = set(map(label_key, unseen))
            seen = tuple(name for name in known or self._collected_names() if label_key(name) not in keys)
        if known:
            keys = set(map(label_key, known))
            for name in (*seen, *unseen):
                if label_key(name) not in keys:
                    raise UserError(
                        f"{self.path}: label {name!r} is none of the {len(known)} labels of column "
                        f"{self.label_column!r}; correct it, or take it out of labels and unseen"
                    )
        return LabelVocabulary(seen, unseen)

    def dataset(self, split: Split) -> datasets.Dataset | datasets.IterableDataset:
        """Rows of one split; a `datasets.IterableDataset` where the set is streamed."""
        own = self._own_split(split)
        rows = self._split_rows(own)
        if self.streaming:
            if split == "train" and self.streamed_rows is None:
                self.streamed_rows = self.source.num_rows.get(own)
            return rows
        if len(rows) == 0:
            raise UserError(f"{self.path}: split {own!r}, the {split} split, has no row")
        if self.validation_size and own == self._own_split("train"):
            if not 0 < self.validation_size < len(rows):
                raise UserError(
                    f"validation_size must be less than the {len(rows):,} training images; got {self.validation_size}"
                )
            order = np.random.default_rng(0).permutation(len(rows))
            held_out, kept = np.split(order, [self.validation_size])
            return rows.select(np.sort(held_out if split == "validation" else kept))
        return rows

    def prepare_data(self) -> None:
        """Fetch the set and read its labels, once on every machine."""
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
            held_out = " or hold training rows out (--data.validation_size N)" if split == "validation" else ""
            raise UserError(
                f"{self.path}: there is no {split} split{self._has_splits}; name one (--data.splits){held_out}"
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
            (columns, id_names), where = self._layout(name), f"{self.path}: split {name!r}"
            indicator, skip = self.label_format == "indicator", self.unknown_labels == "skip"
            reader = LabelReader(self.vocabulary, id_names, indicator, skip)
            maker = RowMaker(columns, reader, where)
            rows = self.source.splits[name]
            if self.streaming:
                self._rows[name] = streamed_rows(rows, maker)
            else:
                settings = {
                    "rows": [self.source.key, rows._fingerprint],
                    "columns": repr(columns),
                    "labels": [self.vocabulary.names, reader.names, indicator, skip],
                }
                self._rows[name], skipped = stored_rows(rows, maker, self.cache_dir, settings)
                if skipped:
                    logger.warning("%s: %s marks of labels outside the vocabulary left out", where, f"{skipped:,}")
        return self._rows[name]

    def _layout(self, name: str) -> tuple[Columns, tuple[str, ...] | None]:
        """Where a split keeps what a row needs, and the names that a `ClassLabel` column gives its ids."""
        if name not in self._layouts:
            rows, where = self.source.splits[name], f"{self.path}: split {name!r}"
            # A stream may not tell its columns before its first row; their types stay unknown.
            features = dict(rows.features) if rows.features is not None else dict.fromkeys(next(iter(rows), {}))

            def find(dotted: str | None, option: str) -> ColumnPath | None:
                return ColumnPath.find(dotted, features, f"{where}: data.{option}") if dotted else None

            image_column = check_image_column(self.image_column, features, where)
            labels = ColumnPath.find(self.label_column, features, f"{where}: data.label_column")
            negative = find(self.negative_column, "negative_column")
            image_id = find(self.id_column or ("__key__" if "__key__" in features else None), "id_column")
            names = class_names(labels.feature(features, where))
            self._layouts[name] = Columns(image_column, labels, negative, image_id), names
        return self._layouts[name]

    def _collected_names(self) -> tuple[str, ...]:
        """All names in the training split, sorted; read once and kept."""
        name = self._own_split("train")
        path, where = self._layout(name)[0].labels, f"{self.path}: split {name!r}"
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
                                "give the names in their order (--data.labels)"
                            )
                        found[label_key(label)] = min(label, found.get(label_key(label), label))
                (aside / "names.json").write_text(json.dumps(sorted(found.values())))
        return check_names(json.loads((folder / "names.json").read_text()), where=f"{where}: {self.label_column}")


def _names(option: Sequence[str] | str | None, what: str) -> tuple[str, ...]:
    if option is None:
        return ()
    if isinstance(option, str):
        return read_names(Path(option).expanduser())
    return check_names(option, where=f"data.{what}")
