"""Labels from options, and from a column of a data set: ids, names or indicator vectors, also inside JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary, check_names, label_key, read_names


@dataclass(frozen=True)
class ColumnPath:
    """A column, or a value inside a column of JSON.

    Attributes:
        column: Name of the column.
        keys: Keys that lead to the value inside it.
        names: Names of the ids in it, if they are a `ClassLabel`.
    """

    column: str
    keys: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None

    @classmethod
    def find(cls, dotted: str, features: Mapping[str, Any], where: str) -> ColumnPath:
        """Find the column that a dotted path names; a column whose name contains the dots takes precedence.

        Args:
            dotted: For instance `json.labels`.
            features: The data set's columns.
            where: Data set and option, for errors.

        Raises:
            UserError: There is no such column, or no such key in it.

        >>> ColumnPath.find("json.labels", {"json": {"labels": None}}, "set")
        ColumnPath(column='json', keys=('labels',), names=None)
        """
        parts = dotted.split(".")
        for count in range(len(parts), 0, -1):
            path = cls(".".join(parts[:count]), tuple(parts[count:]))
            if path.column in features:
                return replace(path, names=class_names(path._feature(features, where)))
        raise UserError(f"{where}: there is no column {dotted!r}; the columns are {', '.join(map(repr, features))}")

    def _feature(self, features: Mapping[str, Any], where: str) -> Any:
        """The type of the value; `None` if the data set does not declare it."""
        feature = features[self.column]
        for key in self.keys:
            if not isinstance(feature, Mapping):
                return None
            if key not in feature:
                raise UserError(f"{where}: {self.column!r} has no {key!r}; it has {', '.join(map(repr, feature))}")
            feature = feature[key]
        return feature

    def value(self, row: Mapping[str, Any], where: str) -> Any:
        """The value in a row; `None` if a part of the path is null."""
        value = row[self.column]
        for key in self.keys:
            if value is None:
                return None
            if not isinstance(value, Mapping) or key not in value:
                raise UserError(f"{where}: {self.column!r} holds no {'.'.join(self.keys)!r}")
            value = value[key]
        return value


def given_names(option: Sequence[str] | str | None, what: str) -> tuple[str, ...]:
    """The labels of an option: none, names, or a file of them.

    Raises:
        UserError: The file cannot be read, or the names are not usable; `what` is the option's name.
    """
    if isinstance(option, str):
        if not os.path.exists(os.path.expanduser(option)):
            raise UserError(f"data.{what}: there is no file {option!r}; names are given as a list: '[{option}]'")
        return read_names(Path(option).expanduser())
    return () if option is None else check_names(option, where=f"data.{what}")


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names.

    >>> some(["cat", "dog", "bird", "fish"])
    "'cat', 'dog', 'bird' and 1 more"
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def class_names(feature: Any) -> tuple[str, ...] | None:
    """Names of a `ClassLabel` feature or a list of them, `None` for others."""
    feature = getattr(feature, "feature", feature)
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def as_list(value: Any) -> Sequence[Any]:
    """The values of a list, a single value or nothing."""
    if value is None:
        return ()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return value if isinstance(value, (list, tuple)) else (value,)


class LabelReader:
    """Turns values of a label column into columns of a vocabulary.

    Args:
        vocabulary: The labels.
        id_names: Name of each id. Default: the vocabulary's own names.
        indicator: Whether a value is a vector with 1 for the ids that it lists and 0 for the others.
        skip_unknown: Skip labels that are not in the vocabulary, and count them in `skipped`.
        unknown: Error message about such a label, with `{}` for the label.
    """

    def __init__(
        self,
        vocabulary: LabelVocabulary,
        id_names: Sequence[str] | None = None,
        indicator: bool = False,
        skip_unknown: bool = False,
        unknown: str = "label {} is not in the vocabulary; add it to labels or unseen, or skip such labels "
        "(unknown_labels=skip)",
    ) -> None:
        self.names = tuple(id_names or vocabulary.names)
        self.indicator = indicator
        self.skip_unknown = skip_unknown
        self.unknown = unknown
        self.skipped = 0
        self._of_key = {label_key(name): column for column, name in enumerate(vocabulary.names)}
        self._of_name: dict[str, int | None] = {}

    def read(self, value: Any, where: str) -> list[int]:
        """Columns of the labels that a value lists, ascending, each once.

        Args:
            value: A list of ids or names, a single one, or `None` for no label; or an indicator vector.
            where: Data set, split and row, for errors.

        Raises:
            UserError: An id is out of range, a name is not in the vocabulary, or a value has another form.
        """
        values = as_list(value)
        if self.indicator and value is not None:
            values = self._listed(values, where)
        columns = {self._column(label, where) for label in values}
        return sorted(column for column in columns if column is not None)

    def _listed(self, vector: Sequence[Any], where: str) -> Sequence[int]:
        if len(vector) != len(self.names):
            raise UserError(
                f"{where}: the indicator vector has {len(vector)} entries for {len(self.names)} labels; "
                "give the labels in its order (labels=FILE)"
            )
        for entry in vector:
            if entry not in (0, 1):
                raise UserError(f"{where}: the indicator vector holds {entry!r}; its entries are 0 or 1")
        return [label_id for label_id, entry in enumerate(vector) if entry]

    def _column(self, label: Any, where: str) -> int | None:
        if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
            if not 0 <= label < len(self.names):
                raise UserError(f"{where}: label id {label} is out of range 0..{len(self.names) - 1}")
            label = self.names[label]
        elif not isinstance(label, str):
            raise UserError(f"{where}: label {label!r} is neither an id nor a name")
        if label not in self._of_name:
            self._of_name[label] = self._of_key.get(label_key(label))
        column = self._of_name[label]
        if column is None:
            if not self.skip_unknown:
                raise UserError(f"{where}: {self.unknown.format(repr(label))}")
            self.skipped += 1
        return column
