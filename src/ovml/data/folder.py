"""The base class of data sets that are pictures in a folder with annotations beside them."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ovml.data.base import MultiLabelDataModule, Split
from ovml.data.cache import Table
from ovml.data.image_files import ImageCheck, check_images, lost_paths
from ovml.utils.errors import UserError

if TYPE_CHECKING:
    import datasets


class FolderDataModule(MultiLabelDataModule):
    """Pictures below a root folder. A subclass reads the annotations; pictures that are missing are left out.

    Args:
        root: Folder of the data set.
        cache_dir: Where annotations are kept after they were read once. Default: that of `datasets`.
        max_missing: Greatest share of a split's pictures that may be missing or unreadable. More is an error: figures
            of different shares are not comparable.
        validation_size: Training pictures that are held out for validation, drawn once and the same in every run.
            Default: the set's own validation split or, where it has none, the test split, as published code does.
        kwargs: See `MultiLabelDataModule`.

    Raises:
        UserError: There is no such folder.

    Example:
        >>> import tempfile
        >>> import pyarrow as pa
        >>> from PIL import Image
        >>> from ovml import LabelVocabulary
        >>> from ovml.data.cache import cached_table, record_batch
        >>> class OnePicture(FolderDataModule):
        ...     vocabulary = LabelVocabulary(seen=("sea", "sand"), unseen=("palm",))
        ...     def read_annotations(self, split):
        ...         def make(counts):  # here one batch of one row
        ...             yield record_batch([str(self.root / "a.png")], pa.array([[0, 2]]), None, ["a"])
        ...         return cached_table(self.cache_dir, f"one-{split}", [], {"root": str(self.root)}, make)
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.new("RGB", (80, 80)).save(f"{root}/a.png")
        ...     OnePicture(root, cache_dir=f"{root}/cache").dataset("train")[0]["positive"]
        [0, 2]
    """

    title: str = "data set"
    """Its name in messages."""
    source: str = ""
    """Where it is handed out, for messages."""
    has_validation: bool = True
    """Whether it has a validation split of its own."""
    min_bytes: int = 0
    """Smaller picture files count as missing."""
    placeholder_copies: int = 0
    """Pictures of which there are so many identical copies count as missing; 0 for never."""

    def __init__(
        self,
        root: str,
        cache_dir: str | None = None,
        max_missing: float = 0.05,
        validation_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root).expanduser()
        self.cache_dir = cache_dir
        self.max_missing = max_missing
        self.validation_size = validation_size
        self._tables: dict[Split, Table] = {}
        self.check_root()

    def check_root(self) -> None:
        """Raise a `UserError` unless the root is a folder."""
        if not self.root.is_dir():
            raise UserError(f"{self.root}: no such folder; --data.root is where {self.title} lies{self._from_where()}")

    @abstractmethod
    def read_annotations(self, split: Split) -> Table:
        """Rows of a split as the data set lists them, by `ovml.data.cache.cached_table`.

        Asked only for splits that the data set has. Paths of pictures are absolute.

        Raises:
            UserError: A file is missing or not of the form expected; the message names the file and what it needs.
        """

    def annotations(self, split: Split) -> Table:
        """Rows of a split as the data set lists them, missing pictures and all."""
        if split not in self._tables:
            self._tables[split] = self.read_annotations(split)
            if len(self._tables[split].rows) == 0:
                raise UserError(f"{self.root}: the {split} split of {self.title} lists no image")
        return self._tables[split]

    def check(self, split: Split) -> ImageCheck:
        """Which pictures of a split are on disk; looked up once and kept."""
        return check_images(self.annotations(split), self.cache_dir, self.min_bytes, self.placeholder_copies)

    def dataset(self, split: Split) -> datasets.Dataset:
        """Rows of a split without those whose picture is missing.

        Raises:
            UserError: More than `max_missing` of the pictures are missing, or the split is empty.
        """
        own = self._own_split(split)
        check = self.check(own)
        self.accept(own, check)
        rows = self.annotations(own).rows
        kept = check.kept
        if self.validation_size and own == "train":
            if not 0 < self.validation_size < len(kept):
                raise UserError(
                    f"validation_size must be less than the {len(kept):,} training images; got {self.validation_size}"
                )
            held_out = np.random.default_rng(0).permutation(len(kept))[: self.validation_size]
            held_out.sort()
            kept = kept[held_out] if split == "validation" else np.delete(kept, held_out)
        if len(kept) == 0:
            raise UserError(f"{self.root}: no image of the {split} split of {self.title} is there{self._from_where()}")
        return rows if len(kept) == len(rows) else rows.select(kept)

    def prepare_data(self) -> None:
        """Read annotations and look for pictures, once on every machine: those of the splits that will be used."""
        stage = self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else "fit"
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "validation"), "validate": ("validation",)}
        for split in {self._own_split(split) for split in splits.get(stage, ("test",))}:
            self.check(split)

    @property
    def own_splits(self) -> tuple[Split, ...]:
        """Splits that the data set itself has."""
        return ("train", "validation", "test") if self.has_validation else ("train", "test")

    def _own_split(self, split: Split) -> Split:
        if split != "validation":
            return split
        if self.validation_size:
            return "train"
        return "validation" if self.has_validation else "test"

    def accept(self, split: Split, check: ImageCheck) -> None:
        """Raise a `UserError` where more than `max_missing` of a split's pictures are lost."""
        lost = len(check.lost)
        if lost > self.max_missing * check.listed:
            example = lost_paths(self.annotations(split), check.lost[:1])[0]
            share = lost / check.listed
            raise UserError(
                f"{self.title}: {lost:,} of the {check.listed:,} images of the {split} split ({share:.1%}) are missing "
                f"or unreadable, the first of them {example}; get them{self._from_where(' from ')}, or accept figures "
                f"that compare with few others (--data.max_missing {share + 0.005:.2f})"
            )

    def _from_where(self, link: str = "; it is handed out at ") -> str:
        return link + self.source if self.source else ""
