"""Attributes of pedestrians: PA-100K and RAP, from their files of MATLAB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ovml.data.base import Split
from ovml.data.divided.base import DividedDataModule, ImageLabels
from ovml.utils.errors import UserError, check_whole, first_line

RAP_EVALUATED = 51
"""Number of RAP's first attributes that are evaluated."""


class PA100KDataModule(DividedDataModule):
    """PA-100K (Liu et al., ICCV 2017): 100,000 pedestrians, 26 attributes.

    `root` holds `annotation.mat` and the images in `data/`, `release_data/release_data/` or `release_data/`. Reading it
    needs scipy (`pip install 'ovml[mat]'`). The text tower reads phrases for the attributes ("person over 60" for
    `AgeOver60`), which `phrases` replaces. No public file divides the attributes into seen and unseen ones.

    Args:
        root: Folder of the data set.
        kwargs: See `DividedDataModule`; `unseen` is what you choose.

    Raises:
        UserError: See `DividedDataModule`; or scipy is not installed.

    Example:
        ```yaml
        data:
          class_path: ovml.data.PA100KDataModule
          init_args:
            root: /data/PA-100K
            unseen: [Backpack, LongCoat]
        ```
    """

    title = "PA-100K"
    source = "https://github.com/xh-liu/HydraPlus-Net"
    has_validation = True
    packaged_phrases = "pa100k"
    folders = ("data", "release_data/release_data", "release_data")

    @cached_property
    def label_names(self) -> Sequence[str]:
        """The attributes in the order of the file."""
        return _texts(self._content["attributes"])

    def files(self, split: Split) -> Sequence[Path]:
        """The one file of annotations."""
        return [self.root / "annotation.mat"]

    @cached_property
    def _content(self) -> dict[str, Any]:
        (path,) = self.files("train")
        content = _read(path)
        needed = ["attributes", *(f"{key}_{kind}" for key in _KEYS.values() for kind in ("images_name", "label"))]
        if missing := [name for name in needed if name not in content]:
            raise UserError(f"{path}: has no {missing[0]}; download PA-100K again from {self.source}")
        return content

    def images(self, split: Split) -> Iterator[ImageLabels]:
        """Images of a split and their attributes."""
        key = _KEYS[split]
        images, marks = _texts(self._content[f"{key}_images_name"]), np.asarray(self._content[f"{key}_label"])
        return _rows(self.files(split)[0], images, marks, self.label_names, self.split_settings)

    @property
    def split_settings(self) -> str:
        """The folder of the images, which the rows name."""
        return self.folder_of(*self.folders)


_KEYS: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}


class RAPDataModule(DividedDataModule):
    """RAP v1 (Li et al., 2016, arXiv 1603.07054): 41,585 pedestrians, of whose attributes the first 51 are evaluated.

    `root` holds `RAP_annotation/RAP_annotation.mat` and the images in `RAP_dataset/`; see `PA100KDataModule` for scipy
    and phrases. The file divides the images in five ways. No public file divides the attributes.

    Args:
        root: Folder of the data set.
        partition: Which of the five divisions into training and test images, from 0 to 4.
        kwargs: See `DividedDataModule`; `unseen` is what you choose.

    Raises:
        UserError: See `DividedDataModule`; or scipy is not installed.

    Example:
        ```yaml
        data:
          class_path: ovml.data.RAPDataModule
          init_args:
            root: /data/RAP
            unseen: 10
        ```
    """

    title = "RAP"
    source = "http://www.rapdataset.com"
    packaged_phrases = "rap"

    def __init__(self, root: str, partition: int = 0, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        check_whole(self, 0, partition=partition)
        if partition > 4:
            raise UserError(f"RAPDataModule: partition must be from 0 to 4; got {partition}")
        self.partition = partition

    def files(self, split: Split) -> Sequence[Path]:
        """The one file of annotations."""
        return [self.root / "RAP_annotation" / "RAP_annotation.mat"]

    @cached_property
    def label_names(self) -> Sequence[str]:
        """The evaluated attributes."""
        return _texts(self._fields[3])[:RAP_EVALUATED]

    @cached_property
    def _fields(self) -> list[Any]:
        """The fields by their place, since copies of the file name them differently."""
        (path,) = self.files("train")
        try:
            record = np.ravel(_read(path)["RAP_annotation"])[0]
            fields = [record[name] for name in record.dtype.names]
            fields[5]
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"{path}: is not RAP_annotation of RAP v1; download it again from {self.source}") from error
        return fields

    def images(self, split: Split) -> Iterator[ImageLabels]:
        """Images of a split and their attributes."""
        (path,) = self.files(split)
        try:
            division = np.ravel(np.ravel(self._fields[0])[self.partition])[0]
            while division.dtype.names is None:  # a cell inside a cell
                division = np.ravel(division)[0]
            indices = np.ravel(division[division.dtype.names[0 if split == "train" else 1]]).astype(np.int64) - 1
            names, marks = _texts(self._fields[5]), np.asarray(self._fields[1])[indices, :RAP_EVALUATED]
            images = [names[i] for i in indices]
        except (IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: its division {self.partition} cannot be read ({first_line(error)})") from error
        return _rows(path, images, marks, self.label_names, "RAP_dataset")

    @property
    def split_settings(self) -> Any:
        """The division."""
        return self.partition


def _rows(
    path: Path, images: Sequence[str], marks: np.ndarray[Any, Any], names: Sequence[str], folder: str
) -> Iterator[ImageLabels]:
    """The images and their labels, of marks `[N, A]`, which are 1 for present."""
    if marks.shape != (len(images), len(names)):
        raise UserError(
            f"{path}: has marks of shape {list(marks.shape)} for {len(images):,} images and {len(names)} attributes; "
            "download it again"
        )
    if not np.isin(marks, (0, 1)).all():
        raise UserError(f"{path}: has marks other than 0 and 1; download it again")
    for image, own in zip(images, marks, strict=True):
        yield f"{folder}/{image}", [names[i] for i in np.flatnonzero(own).tolist()]


def _read(path: Path) -> dict[str, Any]:
    """The variables of a file of MATLAB; nothing in it is executed."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; the data set's folder (root) holds it")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(f"{path}: reading it needs scipy: pip install 'ovml[mat]'") from error
    try:
        content: dict[str, Any] = loadmat(str(path))
    except Exception as error:  # of a damaged file it may be any
        raise UserError(f"{path}: cannot be read ({first_line(error)}); download it again") from error
    return content


def _texts(cells: Any) -> list[str]:
    """The texts of a cell array, each of which is an array inside an array; "" for an empty cell."""
    return [str(next(iter(np.ravel(cell)), "")) for cell in np.ravel(cells)]
