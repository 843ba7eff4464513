"""Labelled images of one's own as a data module."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from ovml.data.base import MultiLabelDataModule, Split
from ovml.data.cache import LABEL_FEATURES
from ovml.data.hub.rows import beside_images
from ovml.data.labels import LabelReader, given_names, some
from ovml.data.own.choose import choose_labels, few_rows, held_out_rows
from ovml.data.own.find import find_set
from ovml.data.own.labelled import SPLITS, LabelledSet, Rows
from ovml.data.own.memory import from_memory
from ovml.data.plain import PlainRow, plain_dataset, plain_table
from ovml.utils.console import notice
from ovml.utils.errors import UserError, check_share, check_whole
from ovml.vocabulary import LabelVocabulary, label_key


class OwnDataModule(MultiLabelDataModule):
    """Labelled images of one's own; their form is recognized and reported.

    A folder holds images and a table (`labels.csv`, `metadata.jsonl`: an image column and a label column, or a column
    of 0 and 1 per label), COCO, Pascal VOC or YOLO annotations, Parquet files, or one folder of images per label.
    Names of files and folders, or a column, tell the splits: `train`, `val`, `test`.

    Args:
        root: The folder; or the file that lists the images, if the folder has several forms. In Python also a
            `datasets.Dataset`, a pandas `DataFrame`, a list or a torch data set of pairs (image, labels), or a dict of
            them by split.
        image_column: Column of the images in a table. Default: the one of a usual name, such as `image`.
        label_column: Column of the labels. Default: the one of a usual name, such as `labels`.
        separator: Between the labels in a cell of a table. Default: `|`, `;` or `,`, the first that occurs.
        labels: All labels, or a file of them; labels of the images that are not among them are left out. Ids in the
            data count from 0 in its order, and vectors of 0 and 1 follow it. Default: those of the data.
        unseen: Labels to withhold from training: names, a file of them, or how many. Labels that only validation or
            test images have are unseen in any case.
        held_out: Share of the training images that validate where the data has no validation images; they test as
            well where it has no test images. Every label keeps a training image.
        shots: Train on a few images per label only, and no others: see `ovml.data.own.choose.few_rows`. Unseen labels
            have none.
        max_missing: Maximum share of the images that may be missing.
        cache_dir: Folder of the cached annotations. Default: the cache of `datasets`.
        kwargs: See `MultiLabelDataModule`.

    Raises:
        UserError: An argument is out of range. The data is read later: it has no form that ovml knows, or is damaged.

    Example:
        >>> from PIL import Image
        >>> pairs = [(Image.new("RGB", (80, 80)), ["sea"]), (Image.new("RGB", (80, 80)), ["sea", "palm"])] * 5
        >>> data = OwnDataModule(pairs, unseen=["palm"])
        >>> data.vocabulary.seen, data.vocabulary.unseen, len(data.dataset("train")), len(data.dataset("test"))
        (('sea',), ('palm',), 8, 2)
    """

    def __init__(
        self,
        root: str | Any,
        image_column: str | None = None,
        label_column: str | None = None,
        separator: str | None = None,
        labels: list[str] | str | None = None,
        unseen: int | list[str] | str | None = None,
        held_out: float = 0.2,
        shots: int | None = None,
        max_missing: float = 0.05,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_whole(self, 1, shots=shots)
        if isinstance(unseen, (int, float)):
            check_whole(self, 1, unseen=unseen)  # type: ignore[arg-type]
        check_share(self, max_missing=max_missing)
        if not 0 < held_out < 1:
            raise UserError(f"OwnDataModule: held_out must be between 0 and 1; got {held_out}")
        self.root = root
        self.options = {"image_column": image_column, "label_column": label_column, "separator": separator}
        self.labels = given_names(labels, "labels")
        self.unseen = unseen
        self.held_out = held_out
        self.shots = shots
        self.max_missing = max_missing
        self.cache_dir = cache_dir
        self._rows: dict[Split, datasets.Dataset] = {}

    @property
    def where(self) -> str:
        """What messages call the data."""
        return str(self.root) if isinstance(self.root, (str, Path)) else "data"

    @cached_property
    def found(self) -> LabelledSet:
        """The data as it was found, with names in the place of ids, without missing images."""
        if isinstance(self.root, (str, Path)):
            found = find_set(Path(self.root).expanduser(), self.options)
        else:
            found = from_memory(self.root, self.options)
        names = self.labels or found.names
        roles = sorted(found.splits, key=[*SPLITS.values(), *found.splits].index)
        lists = [own for rows in found.splits.values() for own in rows.labels if own]
        vectors = len(names) > 1 and all(len(own) == len(names) and all(x in (0, 1) for x in own) for own in lists)
        splits = {role: self._named(self._present(found.splits[role], role), names, vectors) for role in roles}
        return replace(found, splits=splits, names=names)

    def _present(self, rows: Rows, role: str) -> Rows:
        """Rows whose image exists."""
        if isinstance(rows.images, datasets.Dataset):
            return rows
        is_there = [not isinstance(image, str) or os.path.exists(image) for image in rows.images]
        lost = [image for image, kept in zip(rows.images, is_there, strict=True) if not kept]
        missing = f"{self.where}: {len(lost):,} of the {len(rows):,} {role} images are missing"
        if len(lost) > self.max_missing * len(rows):
            share = len(lost) / len(rows) + 0.005
            advice = "add them" if isinstance(self.root, (str, Path)) else "give paths from the current folder"
            accept = f", or accept that (max_missing={share:.2f})" if share < 0.5 else ""
            raise UserError(f"{missing}, first {lost[0]}; {advice}{accept}")
        if lost:
            _say(f"{missing} and left out: {some(lost, 5)}")
        return rows.select(np.flatnonzero(is_there).tolist())

    def _named(self, rows: Rows, names: Sequence[str], vectors: bool) -> Rows:
        """Rows with names in the place of ids, or of vectors of 0 and 1; without labels that are not wanted."""
        known = {label_key(name) for name in self.labels}

        def named(label: Any) -> str:
            if isinstance(label, str) and known and label_key(label) not in known and label.isdecimal():
                label = int(label)
            if isinstance(label, bool) or not isinstance(label, Real) or not float(label).is_integer():
                return str(label)
            number = int(float(label))
            if not 0 <= number < len(names):
                raise UserError(f"{self.where}: label id {number} has no name; give labels=FILE, names in their order")
            return names[number]

        present = [[i for i, x in enumerate(own) if x] for own in rows.labels] if vectors else rows.labels
        labels, unknown = (
            [[name for name in map(named, own) if not known or label_key(name) in known] for own in lists]
            for lists in (present, rows.unknown)
        )
        return Rows(rows.images, labels, unknown)

    @cached_property
    def vocabulary(self) -> LabelVocabulary:
        """The labels of the training images, then the unseen ones; a notice says what was found."""
        trained, *evaluated = ([*self._labels(split)] for split in ("train", "validation", "test"))
        unseen = self.unseen if isinstance(self.unseen, int) else given_names(self.unseen, "unseen")
        vocabulary, alone = choose_labels(trained, [*evaluated[0], *evaluated[1]], unseen, self.found.names)
        self._describe(vocabulary)
        if alone:
            _say(f"{self.where}: no training image has {some(alone, 5)}, so they count as unseen")
        return vocabulary

    def _labels(self, split: Split) -> Iterable[str]:
        rows, indices = self._part(split)
        return (name for i in indices for name in rows.labels[i])

    def _describe(self, vocabulary: LabelVocabulary) -> None:
        splits = self.found.splits
        bare = sum(not labels for rows in splits.values() for labels in rows.labels)
        parts = [
            f"{self.where}: {self.found.form}",
            ", ".join(f"{len(rows):,} {role}" for role, rows in splits.items()) + " images",
            f"{len(vocabulary):,} labels",
        ]
        if unseen := vocabulary.unseen:
            parts[2] += f", {len(unseen):,} of them unseen ({some(unseen, 20)})"
        if bare:
            parts.insert(2, f"{bare:,} of them have no label")
        if "validation" not in splits:
            role = "validation" if "test" in splits else "validation and test"
            parts.append(f"{len(self._held_out):,} of the training images are held out for {role}")
        elif "test" not in splits:
            parts.append("the validation images are tested too")
        if self.found.left_out:
            parts.append(f"left out: {self.found.left_out}")
        _say("; ".join(parts))

    def _part(self, split: Split) -> tuple[Rows, Sequence[int]]:
        """The rows that a split is part of, and which of them."""
        splits = self.found.splits
        role = "validation" if split == "test" and "test" not in splits else split
        if role in splits and (role != "train" or "validation" in splits):
            return splits[role], range(len(splits[role]))
        if "train" not in splits:
            raise UserError(f"{self.where}: has no {split} images, only {', '.join(splits)}")
        rows = splits["train"]
        held = self._held_out
        return rows, held if role == "validation" else np.setdiff1d(np.arange(len(rows)), held).tolist()

    @cached_property
    def _held_out(self) -> list[int]:
        return held_out_rows(self.found.splits["train"].labels, self.held_out)

    @cached_property
    def _few(self) -> list[int]:
        rows, indices = self._part("train")
        seen = set(map(label_key, self.vocabulary.seen))
        labels = [[name for name in rows.labels[i] if label_key(name) in seen] for i in indices]
        few = [indices[i] for i in few_rows(labels, self.shots or 1)]
        _say(f"{self.where}: {len(few):,} training images have {self.shots} of each seen label")
        return few

    @property
    def exhaustive(self) -> bool:  # type: ignore[override]
        """Whether labels that an image does not list are absent; otherwise its row lists those."""
        return not any(own for rows in self.found.splits.values() for own in rows.unknown)

    def dataset(self, split: Split) -> datasets.Dataset:
        """Rows of one split, made once: every stage asks for them."""
        if split not in self._rows:
            self._rows[split] = self._make_rows(split)
        return self._rows[split]

    def _make_rows(self, split: Split) -> datasets.Dataset:
        rows, indices = self._part(split)
        if split == "train" and self.shots:
            indices = self._few
        where = f"{self.where}: {split} split"
        if not len(indices):
            raise UserError(f"{where} has no image; give more images, or another held_out")
        name_of = {label_key(name): name for name in self.vocabulary.names}
        made: list[dict[str, Any]] = [{"image_id": str(i), "positive": rows.labels[i], "negative": []} for i in indices]
        if not self.exhaustive:
            made = [{**row, "negative": rows.absent(i, name_of)} for i, row in zip(indices, made, strict=True)]
        if isinstance(rows.images, datasets.Dataset):
            reader = LabelReader(self.vocabulary)
            for row in made:
                row |= {name: reader.read(row[name], where) for name in ("positive", "negative")}
            images, labels = rows.images.select(indices), datasets.Dataset.from_list(made, features=LABEL_FEATURES)
            return beside_images(images, images.column_names[0], labels)
        plain: list[PlainRow] = [{**row, "image": rows.images[i]} for i, row in zip(indices, made, strict=True)]
        if not all(isinstance(row["image"], str) for row in plain):
            return plain_dataset(plain, self.vocabulary, where)
        files = [{**row, "image_id": row["image"]} for row in plain]
        return plain_table(files, self.vocabulary, where, Path(), self.cache_dir).rows


_say = rank_zero_only(notice)
