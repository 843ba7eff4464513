"""COCO from its own annotations: 48 seen and 17 unseen classes, or all 80 seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ovml.data.base import Split
from ovml.data.divided.base import DividedDataModule, ImageLabels
from ovml.data.labels import given_names
from ovml.data.own.coco import read_coco
from ovml.utils.errors import UserError
from ovml.vocabulary import packaged_vocabulary

UNSEEN = (
    "airplane", "bus", "cake", "cat", "couch", "cow", "cup", "dog", "elephant", "keyboard", "knife", "scissors",
    "sink", "skateboard", "snowboard", "tie", "umbrella",
)  # fmt: skip
"""The 17 unseen classes of the literature."""
UNUSED = (
    "baseball bat", "baseball glove", "cell phone", "dining table", "fire hydrant", "hair drier", "hot dog",
    "parking meter", "potted plant", "sports ball", "stop sign", "teddy bear", "tennis racket", "traffic light",
    "wine glass",
)  # fmt: skip
"""The 15 classes that belong to neither side there."""


class COCODataModule(DividedDataModule):
    """COCO (Lin et al., ECCV 2014): a class is present in an image if one of its instances is annotated there.

    Training images are those of `instances_train`, test images those of `instances_val`. The default division is that
    of open-vocabulary work: 48 seen and 17 unseen classes; annotations of the other 15 classes are left out.

    `root` holds `annotations/instances_{train,val}{year}.json` and the images in `{train,val}{year}/`, or in
    `trainval{year}/` for both.

    Args:
        root: Folder of the data set.
        year: Which images: 2014 (82,783 and 40,504) or 2017 (118,287 and 5,000).
        classes: The classes that are used: names or a file of them. Default: those 65; with `unseen: []` all 80.
        kwargs: See `DividedDataModule`.

    Raises:
        UserError: An argument is out of range. Reading raises one if a file is missing or malformed.

    Example:
        ```yaml
        data:
          class_path: ovml.data.COCODataModule
          init_args:
            root: /data/coco
            unseen: []        # closed set: all 80 classes are seen
        ```
    """

    title = "COCO"
    source = "https://cocodataset.org/#download"
    published_unseen = UNSEEN

    def __init__(
        self, root: str, year: Literal["2014", "2017"] = "2014", classes: list[str] | str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(root, **kwargs)
        self.year = year
        self.classes = classes

    @property
    def label_names(self) -> Sequence[str]:
        """The classes in the order of COCO."""
        names = packaged_vocabulary("coco").names
        given = given_names(self.classes, "classes")
        if unknown := set(given) - set(names):
            raise UserError(f"classes: {min(unknown)!r} is no class of COCO; 'ovml labels coco' lists them")
        if given:
            return [name for name in names if name in given]
        return names if self.unseen is not None else [name for name in names if name not in UNUSED]

    def files(self, split: Split) -> Sequence[Path]:
        """The file of a split's instances."""
        path = self.root / "annotations" / f"instances_{_folder(split)}{self.year}.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; download COCO's annotations from {self.source}")
        return [path]

    def images(self, split: Split) -> Iterator[ImageLabels]:
        """Images of a split and the classes of their instances."""
        (path,) = self.files(split)
        folder = self._images_of(split)
        _, images = read_coco(path)
        return ((f"{folder}/{name}", list(labels)) for name, labels in images)

    @property
    def split_settings(self) -> Any:
        """Where the images are, which the rows name."""
        return [self._images_of(split) for split in self.own_splits]

    def _images_of(self, split: Split) -> str:
        return self.folder_of(f"{_folder(split)}{self.year}", f"trainval{self.year}")


def _folder(split: Split) -> str:
    return "train" if split == "train" else "val"
