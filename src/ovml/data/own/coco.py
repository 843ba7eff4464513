"""COCO: JSON files of images, categories and annotations, of which the categories in each image count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovml.data.own.labelled import ImageIndex, LabelledSet, Rows, ends_of
from ovml.utils.errors import UserError, beginning, first_line
from ovml.utils.files import read_text
from ovml.utils.json import shown

KEYS = {"images", "annotations", "categories"}
OTHER_TASKS = ("captions", "person_keypoints", "image_info", "panoptic")
"""How the names of COCO's own files begin that are not about objects."""
MOST_BYTES = 2**31
"""Size of the largest file."""
ImagesOfNames = tuple[list[str], list[tuple[str, dict[str, None]]]]
"""The names of the categories; and the name of each image with the labels in it."""


def find_coco(index: ImageIndex) -> LabelledSet | None:
    """Files of COCO instances, as `annotations/instances_train2017.json` or `train/_annotations.coco.json`.

    Files of one split that list the same image are joined.

    Raises:
        UserError: A file is damaged.
    """
    labels_of: dict[str, dict[str, dict[str, None]]] = {}
    names: dict[str, None] = {}
    damaged = []
    incomplete: dict[Path, str] = {}
    for file in index.files(".json"):
        role = index.split_of(file) or "train"
        try:
            found = _read(file)
        except LookupError as error:
            incomplete[file] = str(error)
            continue
        except (OSError, ValueError, RecursionError) as error:
            reason = f"{file}: not COCO annotations ({first_line(error)}); export it again"
            damaged.append(error if isinstance(error, UserError) else UserError(reason))
            continue
        if found is None:
            continue
        names |= dict.fromkeys(found[0])
        of_image = labels_of.setdefault(role, {})
        for name, labels in found[1]:
            of_image.setdefault(index.path(name, file, role), {}).update(labels)
    if damaged and (labels_of or index.file):
        raise damaged[0]
    index.damaged += damaged
    for file, why in incomplete.items():
        index.damaged.append(UserError(f"{file}: not COCO annotations (it {why}); export it again"))
    if not labels_of:
        return None
    splits = {role: Rows(list(own), list(map(list, own.values())), [[]] * len(own)) for role, own in labels_of.items()}
    left_out = ", ".join(f"{file.name}, which {why}" for file, why in incomplete.items())
    return LabelledSet("COCO annotations", splits, tuple(names), left_out)


def read_coco(file: Path) -> ImagesOfNames:
    """Read a file of COCO's instances.

    Raises:
        UserError: The file is not COCO's instances, or is damaged.
    """
    try:
        if (found := _read(file)) is not None:
            return found
        reason = "it has no images, annotations and categories"
    except (LookupError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        reason = first_line(error)
    raise UserError(f"{file}: not COCO annotations ({reason}); download it again")


def _read(file: Path) -> ImagesOfNames | None:
    """Read a file; `None` if it is not of COCO.

    Raises:
        LookupError: It lacks one of the three lists, as that of images without annotations does.
        ValueError: It is empty or damaged, or not JSON although it begins as COCO does.
    """
    ends = ends_of(file)
    if ends.strip() and not any(b'"%s"' % key.encode() in ends for key in KEYS):
        return None
    if file.stem.startswith(OTHER_TASKS):
        return None
    if not ends.strip() and file.is_file():
        raise ValueError("it is empty")
    content = json.loads(read_text(file, "annotation", "as the program that made it exports it", MOST_BYTES))
    if not isinstance(content, Mapping) or len(KEYS & set(content)) < 2:
        return None
    for key in sorted(KEYS):
        if key not in content:
            raise LookupError(f"has no {key}")
        if not isinstance(content[key], list) or not all(isinstance(item, Mapping) for item in content[key]):
            raise ValueError(f"{key} is not a list of objects")
    name_of = {
        _id(category, "id", "a category"): _text(category, "name", "a category") for category in content["categories"]
    }
    labels: dict[str, dict[str, None]] = {}
    images = []
    for image in content["images"]:
        images.append((_text(image, "file_name", "an image"), labels.setdefault(_id(image, "id", "an image"), {})))
    for annotation in content["annotations"]:
        category = _id(annotation, "category_id", "an annotation")
        if category not in name_of:
            raise ValueError(f"annotation of category {beginning(category)}, which is not among the categories")
        labels.setdefault(_id(annotation, "image_id", "an annotation"), {})[name_of[category]] = None
    return list(name_of.values()), images


def _id(item: Mapping[str, Any], key: str, kind: str) -> str:
    """An id as text: exporters write the same one as a number here and as a text there."""
    value = item.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise _wrong(item, key, kind)
    return str(value).strip()


def _text(item: Mapping[str, Any], key: str, kind: str) -> str:
    value = item.get(key)
    if isinstance(value, (bool, Mapping, list, type(None))) or not str(value).strip():
        raise _wrong(item, key, kind)
    return str(value)


def _wrong(item: Mapping[str, Any], key: str, kind: str) -> ValueError:
    return ValueError(f"{key} of {kind} is {shown(item[key], 40)}" if key in item else f"{kind} without {key}")
