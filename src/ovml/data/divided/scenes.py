"""Pictures from above: MultiScene-Clean and MLRSNet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ovml.data.base import Split
from ovml.data.divided.base import DividedDataModule, ImageLabels
from ovml.data.divided.tables import read_table
from ovml.utils.errors import UserError


class _Tables(DividedDataModule):
    """A data set in tables whose headers list the same labels; a subclass gives the files and the images."""

    @cached_property
    def label_names(self) -> Sequence[str]:
        """The labels in the header of the first training table."""
        return read_table(self.files("train")[0])[0]

    def rows(self, path: Path) -> Iterator[tuple[str, list[str]]]:
        """The image and the labels of each row of a table.

        Raises:
            UserError: The table cannot be read, or lists other labels than the first one.
        """
        labels, rows = read_table(path)
        if labels != self.label_names:
            first = self.files("train")[0]
            raise UserError(f"{path}: its labels are not those of {first.name}; download both again from {self.source}")
        return rows


class MultiSceneDataModule(_Tables):
    """MultiScene-Clean (Hua et al., TGRS 2021): 14,000 aerial pictures of 512 pixels, 36 kinds of places.

    `root` holds `train.csv`, `test.csv` (a header, then an image name and 36 cells of 0 and 1) and `images/NAME.jpg`.
    No public file divides the labels; published open-vocabulary figures cannot be repeated from public files.

    Args:
        root: Folder of the data set.
        kwargs: See `DividedDataModule`; `unseen` is what you choose.

    Raises:
        UserError: See `DividedDataModule`.

    Example:
        ```yaml
        data:
          class_path: ovml.data.MultiSceneDataModule
          init_args:
            root: /data/MultiScene-Clean
            unseen: 7         # drawn by unseen_seed; or a list of names
        ```
    """

    title = "MultiScene-Clean"
    source = "https://multiscene.github.io"

    def files(self, split: Split) -> Sequence[Path]:
        """The table of a split."""
        return [self.root / ("train.csv" if split == "train" else "test.csv")]

    def images(self, split: Split) -> Iterator[ImageLabels]:
        """Images of a split and their labels."""
        for name, labels in self.rows(self.files(split)[0]):
            yield f"images/{name if Path(name).suffix else f'{name}.jpg'}", labels


class MLRSNetDataModule(_Tables):
    """MLRSNet (Qi et al., ISPRS 2020): 109,161 satellite pictures of 256 pixels, 60 labels.

    `root` holds `labels/CATEGORY.csv` (a header with `image`, then 60 labels) and `Images/CATEGORY/NAME.jpg`, 46
    categories. The data set has no official test split: each image is tested with the chance `test_share`, by a digest
    of its name, so that the split is the same everywhere. No public file divides the labels.

    Args:
        root: Folder of the data set.
        test_share: Share of the images that are tested.
        kwargs: See `DividedDataModule`; `unseen` is what you choose.

    Raises:
        UserError: See `DividedDataModule`.

    Example:
        ```yaml
        data:
          class_path: ovml.data.MLRSNetDataModule
          init_args:
            root: /data/MLRSNet
            unseen: 12
        ```
    """

    title = "MLRSNet"
    source = "https://data.mendeley.com/datasets/7j9bv9vwsx"

    def __init__(self, root: str, test_share: float = 0.2, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        if not 0 < test_share < 1:
            raise UserError(f"MLRSNetDataModule: test_share must be between 0 and 1; got {test_share}")
        self.test_share = test_share

    def files(self, split: Split) -> Sequence[Path]:
        """The tables of all categories; each has rows of both splits."""
        tables = sorted((self.root / "labels").glob("*.csv"))
        if not tables:
            raise UserError(f"{self.root / 'labels'}: no tables of labels there; download them from {self.source}")
        return tables

    def images(self, split: Split) -> Iterator[ImageLabels]:
        """Images of a split and their labels."""
        for path in self.files(split):
            for name, labels in self.rows(path):
                if self._is_tested(f"{path.stem}/{name}") == (split == "test"):
                    yield f"Images/{path.stem}/{name}", labels

    def _is_tested(self, name: str) -> bool:
        digest = hashlib.sha256(name.encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.test_share * 2**64

    @property
    def split_settings(self) -> Any:
        """The share of the test images."""
        return self.test_share
