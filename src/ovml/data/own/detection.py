"""Annotations of object detection, of which the names of the objects in each image count: COCO, Pascal VOC, YOLO."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from yaml import YAMLError  # type: ignore[import-untyped]

from ovml.data.own.labelled import ImageIndex, LabelledSet, Rows, split_of
from ovml.utils.errors import UserError, first_line
from ovml.utils.files import read_text
from ovml.utils.yaml import load_yaml, yaml_reason

HEADER = 1 << 16
"""Bytes in which a file of COCO names its first key."""


def find_coco(root: Path, index: ImageIndex) -> LabelledSet | None:
    """Files of COCO instances, as `annotations/instances_train2017.json` or `train/_annotations.coco.json`.

    Raises:
        UserError: A file is damaged.
    """
    files = [root] if root.is_file() else [path for path in sorted(root.rglob("*.json")) if _is_coco(path)]
    splits: dict[str, Rows] = {}
    names: dict[str, None] = {}
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            name_of = {category["id"]: str(category["name"]) for category in content["categories"]}
            labels: dict[Any, dict[str, None]] = defaultdict(dict)
            for annotation in content["annotations"]:
                labels[annotation["image_id"]][name_of[annotation["category_id"]]] = None
            images = [(image["id"], str(image["file_name"])) for image in content["images"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)
            raise UserError(f"{file}: not COCO annotations ({reason}); export it again") from error
        role = split_of(file.stem) or split_of(file.parent.name) or "train"
        rows = splits.setdefault(role, Rows())
        names |= dict.fromkeys(name_of.values())
        for number, name in images:
            rows.add(index.path(name, file, role), list(labels[number]))
    return LabelledSet("COCO annotations", splits, tuple(names)) if files else None


def _is_coco(path: Path) -> bool:
    """Whether a JSON file has objects in images; captions and key points have other names."""
    if path.name.startswith(("captions", "person_keypoints", "image_info", "panoptic")):
        return False
    with open(path, "rb") as file:
        start = file.read(HEADER)
        file.seek(max(0, path.stat().st_size - HEADER))
        return any(key in start + file.read() for key in (b'"categories"', b'"annotations"'))


def find_voc(root: Path, index: ImageIndex) -> LabelledSet | None:
    """XML files of Pascal VOC, one per image; splits as `ImageSets/Main` or the folders name them.

    Objects marked `difficult` are unknown, as in VOC's own evaluation.

    Raises:
        UserError: A file is damaged.
    """
    files = sorted(root.rglob("*.xml")) if root.is_dir() else []
    lists = {path.stem: set(_text(path).split()) for path in sorted(root.glob("**/ImageSets/Main/*.txt"))}
    role_of = {
        name: role for stem in ("train", "val", "test") for name in lists.get(stem, ()) for role in [split_of(stem)]
    }
    splits: dict[str, Rows] = {}
    for file in files:
        try:
            tree = ElementTree.parse(file).getroot()
            objects = [
                (item.findtext("name", "").strip(), item.findtext("difficult", "0")) for item in tree.iter("object")
            ]
            name = tree.findtext("filename") or file.stem
        except (OSError, ElementTree.ParseError, ValueError) as error:
            raise UserError(
                f"{file}: not an annotation of Pascal VOC ({first_line(error)}); export it again"
            ) from error
        present = list(dict.fromkeys(label for label, difficult in objects if label and difficult.strip() != "1"))
        unknown = [label for label, _ in objects if label and label not in present]
        folders = (split_of(part) for part in file.relative_to(root).parts[:-1])
        role = role_of.get(file.stem) or next((found for found in folders if found), None) or "train"
        image = index.find(file.stem, file.parent) or index.path(name, file, role)
        splits.setdefault(role, Rows()).add(image, present, list(dict.fromkeys(unknown)))
    return LabelledSet("Pascal VOC annotations", splits) if files else None


def find_yolo(root: Path, index: ImageIndex) -> LabelledSet | None:
    """Text files of YOLO beside the images, or in `labels/` where the images are in `images/`; names in `data.yaml`.

    Raises:
        UserError: A file is damaged.
    """
    file = (
        root
        if root.is_file()
        else next((path for path in sorted(root.glob("*.y*ml")) if "names:" in _text(path)), None)
    )
    if file is None:
        return None
    try:
        content = load_yaml(_text(file))
        names = content["names"]
        name_of = {
            int(number): str(name)
            for number, name in (names.items() if isinstance(names, Mapping) else enumerate(names))
        }
    except (YAMLError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: names no labels ({yaml_reason(error)}); it holds names, train, val and test"
        ) from error
    splits: dict[str, Rows] = {}
    folders = _yolo_folders(content, file, index.root)
    for path in index.paths:
        role = next((role for role, folder in folders.items() if path.is_relative_to(folder)), None)
        if role is None:
            continue
        parts = list(path.parts)
        if "images" in parts:
            parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        own = Path(*parts).with_suffix(".txt")
        lines = [line.split() for line in _text(own).splitlines() if line.strip()] if own.is_file() else []
        try:
            found = dict.fromkeys(name_of[int(line[0])] for line in lines)
        except (ValueError, KeyError) as error:
            raise UserError(f"{own}: not labels of {file.name} ({first_line(error)}); export it again") from error
        splits.setdefault(role, Rows()).add(str(path), list(found))
    return LabelledSet("YOLO labels", splits, tuple(name_of[number] for number in sorted(name_of)))


def _yolo_folders(content: Mapping[str, Any], file: Path, root: Path) -> dict[str, Path]:
    """Folders of the splits, which exporters write relative to different places."""
    folders = {}
    for key, role in (("train", "train"), ("val", "validation"), ("valid", "validation"), ("test", "test")):
        value = content.get(key)
        if not isinstance(value, str):
            continue
        steps = [part for part in Path(value).parts if part not in ("..", ".")]
        places = [Path(*steps[start:]) for start in range(len(steps))]
        found = [root / place for place in places if (root / place).is_dir()]
        if not found:
            raise UserError(f"{file}: {key}: there is no folder {value} in {root}; correct it")
        folders[role] = found[0]
    return folders or {"train": root}


def _text(path: Path) -> str:
    return read_text(path, "annotation", "as the program that made it exports it")
