"""Pascal VOC from its XML files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from ovml.data.base import Split
from ovml.data.folder import FolderDataModule
from ovml.data.own.labelled import ImageIndex, Rows
from ovml.data.own.voc import find_voc
from ovml.data.plain import PlainRow
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary, label_key, packaged_vocabulary


class VOCDataModule(FolderDataModule):
    """Pascal VOC (Everingham et al., IJCV 2010): a class is present in an image if one of its objects is marked there.

    A class of which an image has only objects marked `difficult` is unknown in it, as in VOC's own evaluation.
    All 20 classes are seen. Training images are those of `ImageSets/Main/trainval.txt` (2007: 5,011), test images those
    of `test.txt` (4,952).

    Args:
        root: The folder with `Annotations`, `ImageSets` and `JPEGImages`, such as `VOCdevkit/VOC2007`.
        kwargs: See `FolderDataModule`.

    Raises:
        UserError: There is no such folder. Reading raises one if a file is missing or malformed.

    Example:
        ```yaml
        data:
          class_path: ovml.data.VOCDataModule
          init_args:
            root: /data/VOCdevkit/VOC2007
        ```
    """

    title = "Pascal VOC"
    source = "http://host.robots.ox.ac.uk/pascal/VOC"
    has_validation = False
    exhaustive = False

    @cached_property
    def vocabulary(self) -> LabelVocabulary:
        """The 20 classes."""
        return packaged_vocabulary("voc")

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        found = find_voc(ImageIndex(self.root))
        if found is None:
            raise UserError(f"{self.root}: no XML files of Pascal VOC there; give the folder with Annotations/")
        return found.splits

    def read_annotations(self, split: Split) -> Iterator[PlainRow]:
        """Rows of a split."""
        name_of = {label_key(name): name for name in self.vocabulary.names}
        for role in ("train", "validation") if split == "train" else ("test",):
            rows = self._splits.get(role, Rows())
            for index, image in enumerate(rows.images):
                path = Path(image).absolute().relative_to(self.root.absolute())
                yield {"image": str(path), "positive": rows.labels[index], "negative": rows.absent(index, name_of)}
