"""Finds and reads the files of Open Images in a folder: annotations, class lists, images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ovml.data.cache import Table
from ovml.data.openimages.annotations import Annotations
from ovml.data.openimages.csv import AGAIN, SOURCE, read_annotations, read_image_list
from ovml.utils.errors import UserError
from ovml.utils.files import read_text
from ovml.utils.lists import csv_rows


class OpenImagesFiles:
    """Annotations and images as published, of V4 or later, in one folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def inputs(self, split: str) -> list[Path]:
        """Files that the annotations of a split are read from.

        Raises:
            UserError: There is no annotation file, or there are two.
        """
        name, short = "annotations-human-imagelabels.csv", "val" if split == "validation" else split
        patterns = [f"{split}-{name}", *(f"oidv*-{part}-{name}" for part in (split, short))]
        annotations = _find([self.root, self.root / split], *patterns)
        if annotations is None:
            raise UserError(f"{self.root}: no {patterns[0]} there or in {split}/; download it from {SOURCE}")
        images = None
        if split != "train":  # training cannot use images without a verified label: millions of them
            images = _find([self.root, self.root / split], f"{split}-images*.csv")
            images = images or _find([self.root], "image_ids_and_rotation.csv")
        return [annotations, images] if images else [annotations]

    def read(self, split: str, label_ids: Sequence[str] = ()) -> tuple[pa.Array, Annotations]:
        """Image ids of a split, and its annotations; see `read_annotations`.

        Raises:
            UserError: A file is missing or malformed.
        """
        annotations, *images = self.inputs(split)
        return read_annotations(annotations, label_ids, read_image_list(images[0], split) if images else None)

    def paths(self, split: str, image_ids: pa.Array) -> pa.Array:
        """Paths of images."""
        return pc.binary_join_element_wise(f"{self.root / split}/", image_ids, ".jpg", "")

    def finish(self, split: str, table: Table) -> Table:
        """Return the table unchanged; its images are files."""
        return table


def find_class_file(root: Path, name: str) -> Path | None:
    """Find a file such as `class-descriptions.csv`, which later versions call `oidv7-class-descriptions.csv`.

    Raises:
        UserError: There are several.
    """
    return _find([root], name, f"oidv*-{name}")


def read_descriptions(path: Path) -> dict[str, str]:
    """Read the name of every machine id; the header `LabelName,DisplayName` is optional.

    Raises:
        UserError: The file cannot be read, or a line does not hold an id and a name, or repeats an id.
    """
    names: dict[str, str] = {}
    text = read_text(path, "description", f"a machine id and a name per line; {AGAIN}")
    for where, row in csv_rows(text, path, AGAIN):
        if row == ["LabelName", "DisplayName"]:
            continue
        label, *name = map(str.strip, row)
        if not (label and len(name) == 1 and name[0]):
            raise UserError(f"{where}: expected a machine id and a name, got {','.join(row)!r}; {AGAIN}")
        if label in names:
            raise UserError(f"{where}: {label} is described twice; keep one of the lines")
        names[label] = name[0]
    if not names:
        raise UserError(f"{path}: describes no class; {AGAIN}")
    return names


def read_class_list(path: Path, names: Mapping[str, str]) -> list[str]:
    """Read machine ids, one per line; blank lines are skipped.

    Args:
        path: Text file.
        names: Name of every machine id.

    Raises:
        UserError: The file cannot be read, is empty, repeats an id, or has one without a name.
    """
    first: dict[str, int] = {}
    text = read_text(path, "class", f"one machine id per line; {AGAIN}")
    for number, label in enumerate(map(str.strip, text.splitlines()), start=1):
        if not label:
            continue
        if label in first:
            raise UserError(f"{path}, line {number}: {label} is repeated (line {first[label]}); keep one of them")
        if label not in names:
            raise UserError(
                f"{path}, line {number}: {label} is not in the class descriptions, so it has no name; "
                "use both files of the same version"
            )
        first[label] = number
    if not first:
        raise UserError(f"{path}: lists no class; give machine ids such as /m/01g317, one per line")
    return list(first)


def _find(folders: Sequence[Path], *patterns: str) -> Path | None:
    """The one file that matches a pattern; a second list, of the images with boxes only, does not count."""
    matches = {path for folder in folders for pattern in patterns for path in folder.glob(pattern)}
    found = sorted(path for path in matches if "boxable" not in path.name)
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]}: two files of the same kind; keep the one to read")
    return found[0] if found else None
