"""Labelled images as every layout is read: images, and names of labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from ovml.data.paths import PathCheck
from ovml.utils.find_images import images_in

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What the words in names of files and folders, and in columns, mean."""


@dataclass
class Rows:
    """Images, and the labels of each.

    Attributes:
        images: Paths, PIL images, bytes or arrays; or a `datasets.Dataset` of one column.
        labels: The labels present in each image: names, or ids of `LabelledSet.names`.
        unknown: Likewise, the labels that nobody judged in each image; empty if there are none.
    """

    images: list[Any] | datasets.Dataset = field(default_factory=list)
    labels: list[list[Any]] = field(default_factory=list)
    unknown: list[list[Any]] = field(default_factory=list)

    def add(self, image: Any, labels: Sequence[Any], unknown: Sequence[Any] = ()) -> None:
        """Add an image to a list of images."""
        assert isinstance(self.images, list)
        self.images.append(image)
        self.labels.append(list(labels))
        if unknown and not self.unknown:
            self.unknown = [[] for _ in self.labels[1:]]
        if unknown or self.unknown:
            self.unknown.append(list(unknown))

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Sequence[int]) -> Rows:
        """Some of the rows."""
        labels, unknown = ([lists[i] for i in indices] if lists else [] for lists in (self.labels, self.unknown))
        own = self.images
        images = own.select(indices) if isinstance(own, datasets.Dataset) else [own[i] for i in indices]
        return Rows(images, labels, unknown)


@dataclass(frozen=True)
class LabelledSet:
    """A data set as it was found.

    Attributes:
        form: What it is, such as `COCO annotations`.
        splits: Rows of `train`, and perhaps of `validation` and `test`.
        names: Labels that the set lists itself, in its order; empty if they are only known from the rows.
    """

    form: str
    splits: dict[str, Rows]
    names: tuple[str, ...] = ()


def split_of(name: str) -> str | None:
    """The split that a name of a file, a folder or a cell means; `None` if it means none.

    >>> split_of("instances_val2017"), split_of("train"), split_of("constraint")
    ('validation', 'train', None)
    """
    words = re.findall("[a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


class ImageIndex:
    """The image files below a folder, found by a path, a file name or a name without its suffix.

    Args:
        root: The folder. Hidden files are left out.

    Attributes:
        inside: Refuses paths that lead out of the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inside = PathCheck([root], advice="give paths below the data set's folder")
        self.paths = list(images_in(root))
        self._of_name: dict[str, list[Path]] = {}
        for path in self.paths:
            parts = path.parts[len(root.parts) :]
            for start in range(len(parts)):
                name = "/".join(parts[start:])
                for key in {name, name.removesuffix(path.suffix)}:
                    self._of_name.setdefault(key, []).append(path)

    def find(self, name: str, beside: Path, role: str | None = None) -> str | None:
        """The path of an image; `None` if none has this name, or several have.

        Args:
            name: A path relative to `beside` or `root`, or its last parts, with or without suffix.
            beside: Folder of the file that names the image.
            role: Split of the image; its folder may tell it from another one of the same name.
        """
        name = name.replace("\\", "/").removeprefix("./")
        for key in ("/".join((*beside.relative_to(self.root).parts, name)), name):
            found = self._of_name.get(key, [])
            if len(found) > 1:
                exact = [path for path in found if path.relative_to(self.root).as_posix() == key]
                found = exact or [path for path in found if role in map(split_of, path.relative_to(self.root).parts)]
            if len(found) == 1:
                return str(found[0])
        return None

    def path(self, name: str, file: Path, role: str | None = None) -> str:
        """The path of an image that a file names, or where it would be; see `find`.

        Raises:
            UserError: The name leads out of the folder.
        """
        found = self.find(name, file.parent, role)
        if found is None:
            self.inside.check(name, str(file))
        return found or str(file.parent / name)
