"""The base class of data sets whose labels are divided into seen and unseen ones by whoever uses them."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ovml.data.base import Split
from ovml.data.cache import Table, cached_table, record_batch
from ovml.data.divided.phrases import phrases_of, read_phrases
from ovml.data.folder import FolderDataModule
from ovml.data.labels import given_names
from ovml.utils.errors import UserError, check_whole
from ovml.vocabulary import LabelVocabulary, label_key

CHUNK = 4096
"""Number of rows that are made at once."""

ImageLabels = tuple[str, Sequence[str]]
"""The path of an image, from the root, and the names of the labels in it."""


class DividedDataModule(FolderDataModule):
    """A data set that annotates all its labels in all its images.

    A subclass gives the names of the labels, and the rows of each split with the files that they are read from.

    Args:
        root: Folder of the data set.
        unseen: Labels to withhold from training: names, a file of them, or how many to draw. Default: the division of
            the literature, if there is one; else none.
        unseen_seed: Seed of the draw.
        phrases: File of `label,phrase` lines: what the text tower reads in the place of a name. Default: the packaged
            one of the data set, if its names are no words.
        kwargs: See `FolderDataModule`.

    Raises:
        UserError: An argument is out of range, or a file is missing or malformed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> class Sea(DividedDataModule):
        ...     label_names = ("sea", "sand", "palm")
        ...     def files(self, split):
        ...         return []
        ...     def images(self, split):
        ...         yield "a.png", ["sea", "palm"]
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.new("RGB", (80, 80)).save(f"{root}/a.png")
        ...     data = Sea(root, unseen=["palm"], cache_dir=f"{root}/cache")
        ...     data.vocabulary.unseen, data.dataset("train")[0]["positive"]
        (('palm',), [0, 2])
    """

    has_validation = False
    published_unseen: tuple[str, ...] = ()
    """The unseen labels of the literature."""
    packaged_phrases: str | None = None
    """Name of the packaged phrases."""

    def __init__(
        self,
        root: str,
        unseen: int | list[str] | str | None = None,
        unseen_seed: int = 0,
        phrases: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        check_whole(self, 0, unseen_seed=unseen_seed)
        if isinstance(unseen, (int, float)):
            check_whole(self, 1, unseen=unseen)  # type: ignore[arg-type]
        self.unseen = unseen
        self.unseen_seed = unseen_seed
        self.phrases = phrases

    @property
    @abstractmethod
    def label_names(self) -> Sequence[str]:
        """All labels that are scored, in the data set's order."""

    @abstractmethod
    def files(self, split: Split) -> Sequence[Path]:
        """Files that the rows of a split are read from."""

    @abstractmethod
    def images(self, split: Split) -> Iterable[ImageLabels]:
        """Images of a split and the labels in them; labels that are not among `label_names` are left out.

        Raises:
            UserError: A file is missing or malformed.
        """

    @cached_property
    def vocabulary(self) -> LabelVocabulary:
        """The labels in the data set's order, the unseen ones last."""
        names = tuple(self.label_names)
        withheld = set(map(label_key, self._unseen(names)))
        seen = tuple(name for name in names if label_key(name) not in withheld)
        unseen = tuple(name for name in names if label_key(name) in withheld)
        if not seen:
            raise UserError(f"{self.title}: no label is left to train; give fewer unseen ones")
        texts = phrases_of((*seen, *unseen), read_phrases(self.phrases, self.packaged_phrases))
        return LabelVocabulary(seen, unseen, texts)

    def _unseen(self, names: Sequence[str]) -> Sequence[str]:
        if self.unseen is None:
            return self.published_unseen
        if isinstance(self.unseen, int):
            if self.unseen >= len(names):
                raise UserError(f"{self.title}: unseen must be less than its {len(names)} labels; got {self.unseen}")
            order = np.random.default_rng(self.unseen_seed).permutation(len(names))
            return [names[i] for i in order[: self.unseen]]
        given = given_names(self.unseen, "unseen") if self.unseen else ()
        known = set(map(label_key, names))
        if unknown := [name for name in given if label_key(name) not in known]:
            raise UserError(
                f"unseen: {unknown[0]!r} is no label of {self.title}; its labels are {', '.join(names[:5])}, ..."
            )
        return given

    def read_annotations(self, split: Split) -> Table:
        """Rows of a split; made once from the data set's files."""
        column = {label_key(name): i for i, name in enumerate(self.vocabulary.names)}
        root = os.path.abspath(self.root)

        def make(counts: dict[str, Any]) -> Iterator[pa.RecordBatch]:
            images = iter(self.images(split))
            while chunk := list(islice(images, CHUNK)):
                labels = [{column.get(label_key(name), -1) for name in names} - {-1} for _, names in chunk]
                paths = [os.path.join(root, path) for path, _ in chunk]
                yield record_batch(paths, [sorted(own) for own in labels], None, [path for path, _ in chunk])

        settings = {"root": root, "labels": self.vocabulary.names, "split": self.split_settings}
        return cached_table(self.cache_dir, f"{type(self).__name__}-{split}", self.files(split), settings, make)

    def folder_of(self, *names: str) -> str:
        """The first of several folders that is there, from the root; else the first."""
        return next((name for name in names if (self.root / name).is_dir()), names[0])

    @property
    def split_settings(self) -> Any:
        """What the rows depend on beside the files and the labels; plain values."""
        return None
