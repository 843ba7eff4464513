"""Labelled images as every layout is read: images, and names of labels."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from ovml.data.paths import PathCheck
from ovml.utils.errors import UserError
from ovml.utils.find_images import EXTENSIONS
from ovml.vocabulary import label_key

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
        unknown: Likewise, the labels that nobody judged in each image.
    """

    images: list[Any] | datasets.Dataset = field(default_factory=list)
    labels: list[list[Any]] = field(default_factory=list)
    unknown: list[list[Any]] = field(default_factory=list)

    def add(self, image: Any, labels: Sequence[Any], unknown: Sequence[Any] = ()) -> None:
        """Add an image to a list of images."""
        assert isinstance(self.images, list)
        self.images.append(image)
        self.labels.append(list(labels))
        self.unknown.append(list(unknown))

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Sequence[int]) -> Rows:
        """Some of the rows."""
        labels, unknown = ([lists[i] for i in indices] for lists in (self.labels, self.unknown))
        own = self.images
        images = own.select(indices) if isinstance(own, datasets.Dataset) else [own[i] for i in indices]
        return Rows(images, labels, unknown)

    def absent(self, index: int, name_of: Mapping[str, str]) -> list[str]:
        """The labels that are neither present nor unknown in an image, of names by `label_key`."""
        others = set(map(label_key, [*self.labels[index], *self.unknown[index]]))
        return [name for key, name in name_of.items() if key not in others]


@dataclass(frozen=True)
class LabelledSet:
    """A data set as it was found.

    Attributes:
        form: What it is, such as `COCO annotations`.
        splits: Rows of `train`, and perhaps of `validation` and `test`.
        names: Labels that the set lists itself, in its order; empty if they are only known from the rows.
        left_out: What of the folder is no part of the set, such as `2 images outside of the label folders`.
    """

    form: str
    splits: dict[str, Rows]
    names: tuple[str, ...] = ()
    left_out: str = ""


def split_of(name: str) -> str | None:
    """The split that a name of a file, a folder or a cell means; `None` if it means none.

    >>> split_of("instances_val2017"), split_of("train"), split_of("constraint")
    ('validation', 'train', None)
    """
    words = re.findall("[a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)


class ImageIndex:
    """The files below a folder: images by their names, and files of annotations.

    Images are found by a path, a file name or a name without its suffix. Blanks around names do not count; neither do
    upper and lower case and the forms of Unicode, where exactly one file fits.

    Args:
        root: The folder; or the one file of annotations in it that is to be read.

    Attributes:
        root: The folder. It is the one above the file's own, if that has no image: `annotations/instances.json`.
        file: The file of annotations; `None` if all in the folder are to be read.
        paths: The image files.
        inside: Refuses paths that lead out of the folder.
        damaged: What is wrong with files that seem to be annotations; they are only an error if nothing else is found.

    Raises:
        UserError: A folder cannot be listed.
    """

    def __init__(self, root: Path) -> None:
        self.file = None if root.is_dir() else root
        self.root = root if self.file is None else root.parent
        self._set_files()
        above = Path(os.path.abspath(self.root)).parent
        if root.suffix.lower() in (".json", ".yaml", ".yml") and self.file and not self.paths and above.name:
            self.root, self.file = above, Path(os.path.abspath(self.file))
            self._set_files()
        self.inside = PathCheck([self.root], advice="give paths below the data set's folder")
        self.damaged: list[UserError] = []
        self._of_name: dict[str, list[Path]] = {}
        for path in self.paths:
            parts = loose(path.relative_to(self.root).as_posix()).split("/")
            stem = parts[-1].removesuffix(path.suffix.lower()).strip()
            for start in range(len(parts)):
                for last in {parts[-1], stem}:
                    self._of_name.setdefault("/".join([*parts[start:-1], last]), []).append(path)

    def _set_files(self) -> None:
        self._files = list(_visible(self.root))
        self.paths = [path for path in self._files if path.suffix.lower() in EXTENSIONS and path.is_file()]

    def files(self, *suffixes: str) -> list[Path]:
        """The files of annotations that end in a suffix, in any case; hidden ones are left out."""
        files = self._files if self.file is None else [self.file]
        return [path for path in files if path.suffix.lower() in suffixes]

    def split_of(self, file: Path) -> str | None:
        """The split that a file's name or else that of its folder means; `None` if they mean none."""
        return split_of(file.stem) or (split_of(file.parent.name) if file.parent != self.root else None)

    def find(self, name: str, beside: Path, role: str | None = None) -> str | None:
        """The path of an image; `None` if none has this name, or several have.

        Args:
            name: A path relative to `beside` or `root`, or its last parts, with or without suffix.
            beside: Folder of the file that names the image.
            role: Split of the image; its folder may tell it from another one of the same name.
        """
        name = name.strip().replace("\\", "/").removeprefix("./")
        for key in ("/".join((*beside.relative_to(self.root).parts, name)), name):
            found = self._of_name.get(loose(key), [])
            if len(found) > 1:
                found = [path for path in found if _ends_in(path, key)] or found
            if len(found) > 1:
                exact = [path for path in found if path.relative_to(self.root).as_posix() == key]
                found = exact or [path for path in found if role in map(split_of, path.relative_to(self.root).parts)]
            if len(found) == 1:
                return str(found[0])
        return None

    def path(self, name: object, file: Path, role: str | None = None) -> str:
        """The path of an image that a file names, such as in a cell, or where it would be; see `find`.

        Raises:
            UserError: The name leads out of the folder.
        """
        text = str(name)
        found = self.find(text, file.parent, role)
        if found is None:
            self.inside.check(text, str(file))
        return found or str(file.parent / text)


def _visible(folder: Path) -> Iterator[Path]:
    """The files below a folder, by name. What is hidden, links to folders and links to nothing are left out."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); make it readable, or move it away") from error
    for entry in found:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _visible(path)
        elif not entry.is_dir() and (not entry.is_symlink() or path.exists()):
            yield path


def loose(name: str) -> str:
    """A path without what does not count in it: blanks around names, case, forms of Unicode."""
    return "/".join(map(str.strip, unicodedata.normalize("NFC", name).lower().split("/")))


def _ends_in(path: Path, name: str) -> bool:
    """Whether the last parts of a path are spelled as a name, with or without the suffix."""
    return any(f"/{text}".endswith(f"/{name}") for text in (path.as_posix(), path.with_suffix("").as_posix()))


def ends_of(path: Path, size: int = 1 << 16) -> bytes:
    """The first and last bytes of a text file, by which its form is guessed; without the zeros of UTF-16."""
    if not path.is_file():
        return b""
    with open(path, "rb") as file:
        start = file.read(size)
        file.seek(max(len(start), path.stat().st_size - size))
        return (start + file.read()).replace(b"\0", b"")
