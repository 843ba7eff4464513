"""The base class of data sets with images in a folder and annotations beside them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

from ovml.data.base import MultiLabelDataModule, Split
from ovml.data.cache import Table
from ovml.data.hub.load import cache_folders
from ovml.data.image_files import ImageCheck, check_images, lost_paths
from ovml.data.paths import PathCheck
from ovml.data.plain import PlainRow, plain_table
from ovml.data.samplers import hold_out
from ovml.utils.errors import UserError, check_share, check_whole


class FolderDataModule(MultiLabelDataModule):
    """Images below a root folder. A subclass reads the annotations; missing images are skipped.

    Args:
        root: Folder of the data set.
        cache_dir: Folder of the cached annotations. Default: the cache of `datasets`.
        max_missing: Maximum share of a split's images that may be missing or unreadable. More is an error, because
            results on different images are not comparable.
        allow_outside: Read images outside the root too, whose paths are absolute or have `..`. The files of strangers
            could name any image of this machine.
        validation_size: Number of training images to hold out for validation, the same ones in every run. Default:
            the data set's validation split or, if it has none, the test split, as published code does.
        kwargs: See `MultiLabelDataModule`.

    Raises:
        UserError: There is no such folder, or an argument is out of range.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from ovml import LabelVocabulary
        >>> class OneImage(FolderDataModule):
        ...     vocabulary = LabelVocabulary(seen=("sea", "sand"), unseen=("palm",))
        ...     def read_annotations(self, split):
        ...         return [{"image": "a.png", "positive": ["sea", "palm"]}]
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Image.new("RGB", (80, 80)).save(f"{root}/a.png")
        ...     OneImage(root, cache_dir=f"{root}/cache").dataset("train")[0]["positive"]
        [0, 2]
    """

    title: str = "data set"
    """Name of the data set in messages."""
    source: str = ""
    """Where to download it, for messages."""
    has_validation: bool = True
    """Whether the data set has a validation split."""
    min_bytes: int = 0
    """Smaller image files count as missing."""
    placeholder_copies: int = 0
    """Number of identical copies from which images count as missing placeholders; 0 turns this off."""

    def __init__(
        self,
        root: str,
        cache_dir: str | None = None,
        max_missing: float = 0.05,
        allow_outside: bool = False,
        validation_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_share(self, max_missing=max_missing)
        check_whole(self, 1, validation_size=validation_size)
        self.root = Path(root).expanduser()
        self.path_check = PathCheck([self.root, *cache_folders(cache_dir)], allow_outside)
        self.cache_dir = cache_dir
        self.max_missing = max_missing
        self.validation_size = validation_size
        self._tables: dict[Split, Table] = {}
        self.check_root()

    def check_root(self) -> None:
        """Raise a `UserError` unless the root is a folder."""
        if not self.root.is_dir():
            raise UserError(
                f"{self.root}: no such folder; root=FOLDER is the folder of {self.title}{self._from_where()}"
            )

    @abstractmethod
    def read_annotations(self, split: Split) -> Table | Iterable[PlainRow]:
        """Rows of a split as the data set lists them, called only for splits that the data set has.

        Plain dicts with paths that start from `root`; or for sets of millions of images, which should not be in memory
        as a whole, batches of rows by `ovml.data.cache.cached_table`, with absolute paths.

        Raises:
            UserError: A file is missing or not of the form expected; the message names the file and what it needs.
        """

    def annotations(self, split: Split) -> Table:
        """Rows of a split as the data set lists them, missing images included.

        Raises:
            UserError: The split is empty, or a path leaves the root, which is not allowed.
        """
        if split not in self._tables:
            found, where = self.read_annotations(split), f"{self.root}: {split} split"
            if not isinstance(found, Table):
                found = plain_table(found, self.vocabulary, where, self.root, self.cache_dir)
            if len(found.rows) == 0:
                raise UserError(f"{self.root}: the {split} split of {self.title} lists no image")
            self.path_check.check_images(found.rows.data.column("image"), where)
            self._tables[split] = found
        return self._tables[split]

    def check(self, split: Split) -> ImageCheck:
        """Which images of a split are on disk; looked up once, then cached."""
        return check_images(self.annotations(split), self.cache_dir, self.min_bytes, self.placeholder_copies)

    def dataset(self, split: Split) -> datasets.Dataset:
        """Rows of a split without those whose image is missing.

        Raises:
            UserError: More than `max_missing` of the images are missing, or the split is empty.
        """
        own = self._own_split(split)
        check = self.check(own)
        self.accept(own, check)
        rows = self.annotations(own).rows
        kept = check.kept
        if self.validation_size and own == "train":
            kept = kept[hold_out(len(kept), self.validation_size, split)]
        if len(kept) == 0:
            raise UserError(f"{self.root}: no image of the {split} split of {self.title} is there{self._from_where()}")
        return rows if len(kept) == len(rows) else rows.select(kept)

    def prepare_data(self) -> None:
        """Read the annotations and look for the images of the splits in use, once per machine."""
        stage = self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else "fit"
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "validation"), "validate": ("validation",)}
        for split in {self._own_split(split) for split in splits.get(stage, ("test",))}:
            self.check(split)

    @property
    def own_splits(self) -> tuple[Split, ...]:
        """Splits of the data set itself."""
        return ("train", "validation", "test") if self.has_validation else ("train", "test")

    def _own_split(self, split: Split) -> Split:
        if split != "validation":
            return split
        if self.validation_size:
            return "train"
        return "validation" if self.has_validation else "test"

    def accept(self, split: Split, check: ImageCheck) -> None:
        """Raise a `UserError` if more than `max_missing` of a split's images are lost."""
        lost = len(check.lost)
        if lost > self.max_missing * check.listed:
            example = lost_paths(self.annotations(split), check.lost[:1])[0]
            share = lost / check.listed
            raise UserError(
                f"{self.title}: {lost:,} of the {check.listed:,} images of the {split} split ({share:.1%}) are missing "
                f"or unreadable, the first of them {example}; get them{self._from_where(' from ')}, or accept results "
                f"that are not comparable with others (max_missing={share + 0.005:.2f})"
            )

    def _from_where(self, link: str = "; download it from ") -> str:
        return link + self.source if self.source else ""
