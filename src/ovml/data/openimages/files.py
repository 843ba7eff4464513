"""The files of Open Images in their folder: which is which, class lists, pictures."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ovml.data.cache import Table
from ovml.data.openimages.annotations import Marks
from ovml.data.openimages.csv import AGAIN, SOURCE, read_image_list, read_marks, unreadable
from ovml.utils.errors import UserError


class OpenImagesFiles:
    """Annotations and pictures as they are handed out, of V4 or later, in one folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def inputs(self, split: str) -> list[Path]:
        """Files that the marks of a split are read from.

        Raises:
            UserError: There are no annotations, or two files of them.
        """
        name, short = "annotations-human-imagelabels.csv", "val" if split == "validation" else split
        patterns = [f"{split}-{name}", *(f"oidv*-{part}-{name}" for part in (split, short))]
        annotations = _one_of(_matches([self.root, self.root / split], patterns))
        if annotations is None:
            raise UserError(f"{self.root}: no {patterns[0]} there or in {split}/; get it from {SOURCE}")
        images = self._image_list(split)
        return [annotations, images] if images else [annotations]

    def read(self, split: str, label_ids: Sequence[str] = ()) -> tuple[pa.Array, Marks]:
        """Image ids of a split, and its marks; see `read_marks`.

        Raises:
            UserError: A file is missing or malformed.
        """
        annotations, *images = self.inputs(split)
        return read_marks(annotations, label_ids, read_image_list(images[0], split) if images else None)

    def paths(self, split: str, image_ids: pa.Array) -> pa.Array:
        """Paths of pictures."""
        return pc.binary_join_element_wise(f"{self.root / split}/", image_ids, ".jpg", "")

    def finish(self, split: str, table: Table) -> Table:
        """The table as it is: its pictures are files."""
        return table

    def _image_list(self, split: str) -> Path | None:
        # An image without a verified label is of no use in training, so that millions of them need not be listed.
        if split == "train":
            return None
        own = _matches([self.root, self.root / split], [f"{split}-images*.csv"])
        # Beside it there may be a list of the images with boxes alone.
        return _one_of([path for path in own if "boxable" not in path.name]) or _one_of(
            _matches([self.root], ["image_ids_and_rotation.csv"])
        )


def find_class_file(root: Path, name: str) -> Path | None:
    """A file such as `class-descriptions.csv`, which later versions call `oidv7-class-descriptions.csv`.

    Raises:
        UserError: There are several.
    """
    return _one_of(_matches([root], [name, f"oidv*-{name}"]))


def read_descriptions(path: Path) -> dict[str, str]:
    """Name of every machine id; with or without the header `LabelName,DisplayName`.

    Raises:
        UserError: The file cannot be read, or a line does not hold an id and a name, or repeats an id.
    """
    names: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if not row or row == ["LabelName", "DisplayName"]:
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(row) != 2 or not all(cell.strip() for cell in row):
                    raise UserError(f"{where}: expected a machine id and a name, got {','.join(row)!r}; {AGAIN}")
                label, name = row[0].strip(), row[1].strip()
                if label in names:
                    raise UserError(f"{where}: {label} is described a second time; keep one of the lines")
                names[label] = name
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; {AGAIN}") from error
    except (OSError, UnicodeDecodeError) as error:
        unreadable(path, error)
    if not names:
        raise UserError(f"{path}: describes no class; {AGAIN}")
    return names


def read_class_list(path: Path, names: Mapping[str, str]) -> list[str]:
    """Machine ids, one a line; blank lines are left out.

    Args:
        path: Text file.
        names: Name of every machine id.

    Raises:
        UserError: The file cannot be read, is empty, repeats an id, or has one without a name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        unreadable(path, error)
    first: dict[str, int] = {}
    for number, label in enumerate((line.strip() for line in lines), start=1):
        if not label:
            continue
        if label in first:
            raise UserError(f"{path}, line {number}: {label} is repeated (line {first[label]}); keep one of them")
        if label not in names:
            raise UserError(
                f"{path}, line {number}: {label} is not among the class descriptions, so it has no name; "
                "take both files of the same version"
            )
        first[label] = number
    if not first:
        raise UserError(f"{path}: lists no class; give machine ids such as /m/01g317, one a line")
    return list(first)


def _matches(folders: Sequence[Path], patterns: Sequence[str]) -> list[Path]:
    return sorted({path for folder in folders for pattern in patterns for path in folder.glob(pattern)})


def _one_of(found: Sequence[Path]) -> Path | None:
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]}: two of the same kind; keep the one that is to be read")
    return found[0] if found else None
