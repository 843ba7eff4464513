"""YOLO: text files of class ids beside the images; `data.yaml` holds the names of the classes and the splits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from yaml import YAMLError  # type: ignore[import-untyped]

from ovml.data.own.labelled import SPLITS, ImageIndex, LabelledSet, Rows, ends_of, split_of
from ovml.utils.errors import UserError, beginning
from ovml.utils.files import read_text
from ovml.utils.yaml import load_yaml, yaml_reason
from ovml.vocabulary import label_key

NAMES = re.compile(rb"""(^|[{,\xbf\xfe\xff])\s*["']?names["']?\s*:""", re.MULTILINE)
"""The key in block or flow style, perhaps after a byte order mark."""


def find_yolo(index: ImageIndex) -> LabelledSet | None:
    """Text files of YOLO beside the images, or in `labels/` where the images are in `images/`; names in `data.yaml`.

    Raises:
        UserError: A file is damaged.
    """
    file, content = _described(index)
    if file is None:
        return None
    try:
        name_of = _names(content["names"])
    except ValueError as error:
        raise UserError(f"{file}: names no labels ({error}); names lists them, or maps ids to them") from error
    role_of, missing = _images(content, file, index)
    splits: dict[str, Rows] = {}
    for image, role in role_of.items():
        splits.setdefault(role, Rows()).add(image, _labels(Path(image), index.root, name_of, file))
    left_out = ", ".join(f"{place}, which is not there" for place in missing)
    return LabelledSet("YOLO labels", splits, tuple(name_of[number] for number in sorted(name_of)), left_out)


def _described(index: ImageIndex) -> tuple[Path | None, Mapping[str, Any]]:
    """The YAML file with `names` that is the least deep, and its content."""
    found: list[tuple[Path, Mapping[str, Any]]] = []
    damaged = []
    for file in sorted(index.files(".yaml", ".yml"), key=lambda path: len(path.parts)):
        ends = ends_of(file)
        if (ends.strip() and not NAMES.search(ends)) or (found and len(found[0][0].parts) < len(file.parts)):
            continue
        try:
            content = load_yaml(_text(file))
        except UserError as error:
            damaged.append(error)
        except YAMLError as error:
            problem = f"names no labels ({yaml_reason(error)})"
            damaged.append(UserError(f"{file}: {problem}; it holds names, train, val and test"))
        else:
            if isinstance(content, Mapping) and "names" in content:
                found.append((file, content))
            elif content is None:
                damaged.append(UserError(f"{file}: is empty; write names, train, val and test, or remove it"))
    if any(content != found[0][1] for _, content in found):
        files = ", ".join(file.name for file, _ in found)
        raise UserError(f"{index.root}: has several files of YOLO, {files}; give the one that counts (root=FILE)")
    index.damaged += damaged
    return found[0] if found else (None, {})


def _names(names: Any) -> dict[int, str]:
    """The name of each id: a key of a mapping, or a position in a list.

    Raises:
        ValueError: They are something else, or two are the same.
    """
    if not isinstance(names, (Mapping, list)) or not names:
        raise ValueError("names is empty" if not names else f"names is {beginning(repr(names), 40)}")
    name_of: dict[int, str] = {}
    keys: dict[str, int] = {}
    for key, name in names.items() if isinstance(names, Mapping) else enumerate(names):
        number = _whole(key)
        if number is None:
            raise ValueError(f"the id {beginning(repr(key), 40)} is not 0 or a positive number")
        if isinstance(name, bool) or not isinstance(name, (str, int, float)) or not str(name).strip():
            raise ValueError(f"name {number} is {beginning(repr(name), 40)}, not a text; put it in quotes")
        if number in name_of:
            raise ValueError(f"the id {number} has two names")
        first = keys.setdefault(label_key(str(name)), number)
        if first != number:
            raise ValueError(f"names {first} and {number} are both {beginning(str(name), 40)!r}")
        name_of[number] = str(name).strip()
    return name_of


def _whole(value: Any) -> int | None:
    """A whole number, 0 or greater, perhaps written as `1.0`; `None` if it is none."""
    text = "" if isinstance(value, bool) else str(value).strip()
    return int(text.partition(".")[0]) if re.fullmatch(r"[0-9]{1,9}(\.0*)?", text) else None


def _labels(image: Path, root: Path, name_of: Mapping[int, str], file: Path) -> list[str]:
    """The labels of an image."""
    parts = list(image.relative_to(root).parts)
    lower = [part.lower() for part in parts[:-1]]
    if "images" in lower:
        parts[len(lower) - 1 - lower[::-1].index("images")] = "labels"
    places = [root.joinpath(*parts).with_suffix(".txt"), image.with_suffix(".txt")]
    own = next((place for place in places if place.is_file()), None)
    found: dict[str, None] = {}
    for number, line in enumerate(_text(own).splitlines() if own else (), 1):
        words = line.split()
        if not words:
            continue
        name = name_of.get(-1 if (known := _whole(words[0])) is None else known)
        if name is None:
            problem = f"line {number}: no name has the id {beginning(words[0], 20)}"
            raise UserError(f"{own}: not labels of {file.name} ({problem}); correct one of both")
        found[name] = None
    return list(found)


def _images(content: Mapping[str, Any], file: Path, index: ImageIndex) -> tuple[dict[str, str], list[str]]:
    """The split of each image; and the places of validation and test images that are not there."""
    folders: dict[Path, str] = {}
    listed: dict[str, str] = {}
    missing = []
    for key, role in SPLITS.items():
        value = content.get(key)
        for place in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(place, str):
                raise UserError(f"{file}: {key}: {beginning(repr(place), 40)} is not a folder; correct it")
            found = next(_places(place, role, file, index), None)
            if found is None and role == "train":
                raise UserError(f"{file}: {key}: there is no folder {place} in {index.root}; correct it")
            if found is None:
                missing.append(f"{key}: {place}")
            elif found.is_dir():
                folders.setdefault(found, role)
            else:
                for name in filter(None, map(str.strip, _text(found).splitlines())):
                    listed.setdefault(_listed(name, role, found, index), role)
    if not folders and not listed:
        folders[index.root] = "train"
    for path in index.paths:
        if inner := next((folders[folder] for folder in path.parents if folder in folders), None):
            listed.setdefault(str(path), inner)
    return listed, missing


def _places(place: str, role: str, file: Path, index: ImageIndex) -> Iterator[Path]:
    """Where a folder or a list of images may be: exporters write it relative to different places, or absolute.

    Its last parts count, below the folder of the data; but not without the part that names the split.
    """
    steps = _steps(place)
    for start in range(max(1, len(steps))):
        names_split = any(split_of(step) == role for step in steps[start:])
        if role != "train" and not names_split and any(split_of(step) == role for step in steps[:start]):
            return
        for base in dict.fromkeys((file.parent, index.root)):
            path = base.joinpath(*steps[start:])
            if path.is_dir() or (path.suffix.lower() == ".txt" and path.is_file()):
                yield path


def _listed(name: str, role: str, file: Path, index: ImageIndex) -> str:
    """The path of an image that a list names, by its last parts; or where it would be."""
    steps = _steps(name)
    tails = ["/".join(steps[start:]) for start in range(len(steps))]
    found = (index.find(tail, file.parent, role) for tail in tails)
    return next(filter(None, found), None) or str(index.root.joinpath(*steps))


def _steps(place: str) -> list[str]:
    parts = PurePosixPath(place.strip().replace("\\", "/")).parts
    return [part for part in parts if part not in ("/", "..", ".") and not part.endswith(":")]


def _text(path: Path) -> str:
    return read_text(path, "annotation", "as the program that made it exports it")
