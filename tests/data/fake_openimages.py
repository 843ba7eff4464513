"""A tiny Open Images in its real layout, and a naive reading of such a tree."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

DESCRIPTIONS = {
    "/m/0cat": "Cat",
    "/m/0dog": "Dog",
    "/m/0duck": "Ducks, geese and swans",
    "/m/0bank1": "Bank",
    "/m/0bank2": "Bank",
    "/m/0tree": "Tree",
    "/m/0rare": "Jeu de paume",
    "/g/11sky": "Sky",
}
TRAINABLE = ["/m/0dog", "/m/0cat", "/m/0bank1", "/m/0duck"]
"""The seen labels."""
UNSEEN = ["/m/0bank2", "/m/0tree", "/g/11sky"]
"""Those of the test annotations, in order: present in 3, 2 and 1 images."""

# Rows of (image, label, confidence) as people marked them; some twice, some both ways.
ROWS = {
    "train": [
        ("a1", "/m/0cat", "1"),
        ("a1", "/m/0dog", "0"),
        ("a1", "/m/0cat", "1"),
        ("a2", "/m/0dog", "1"),
        ("a2", "/m/0rare", "1"),
        ("a3", "/m/0bank1", "1"),
        ("a3", "/m/0bank2", "0"),
        ("a2", "/m/0cat", "0"),
        ("a2", "/m/0cat", "1"),
        ("a3", "/m/0dog", "1"),
        ("a4", "/m/0duck", "1"),
    ],
    "validation": [("b1", "/m/0cat", "1"), ("b1", "/m/0tree", "0"), ("b2", "/m/0bank2", "1")],
    "test": [
        ("c1", "/m/0bank2", "1"),
        ("c2", "/m/0bank2", "1"),
        ("c3", "/m/0bank2", "1"),
        ("c3", "/m/0bank2", "1"),
        ("c1", "/m/0tree", "1"),
        ("c2", "/m/0tree", "1"),
        ("c3", "/m/0tree", "0"),
        ("c3", "/g/11sky", "1"),
        ("c2", "/g/11sky", "1"),
        ("c2", "/g/11sky", "0"),
        ("c1", "/m/0cat", "1"),
        ("c1", "/m/0dog", "0"),
    ],
}
LISTED = {"validation": ["b3", "b1", "b2"], "test": ["c1", "c2", "c3", "c4"]}
"""Image lists: with images for which nothing was verified."""
HEADER = "ImageID,Source,LabelName,Confidence"


def write(root: Path, image_lists: bool = False) -> Path:
    """Write the files as V4 names them, with a small picture for every image.

    Args:
        root: Folder, made if need be.
        image_lists: Write `{split}-images-with-rotation.csv` as well, with their pictures.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "class-descriptions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(DESCRIPTIONS.items())
    (root / "classes-trainable.txt").write_text("\n".join(TRAINABLE) + "\n")
    for split, rows in ROWS.items():
        write_annotations(root, split, rows)
        images = [image for image, *_ in rows]
        if image_lists and split in LISTED:
            images += LISTED[split]
            lines = ["ImageID,Subset,Title,Rotation", *(f'{i},{split},"A ""title"",\nof {i}",' for i in LISTED[split])]
            (root / f"{split}-images-with-rotation.csv").write_text("\n".join(lines) + "\n")
        (root / split).mkdir(exist_ok=True)
        for number, image in enumerate(dict.fromkeys(images)):
            Image.new("RGB", (40, 30), (30 * number, 60, 90)).save(root / split / f"{image}.jpg")
    return root


def write_annotations(root: Path, split: str, rows: list[tuple[str, str, str]]) -> Path:
    """Write the annotations of a split."""
    path = annotations(root, split)
    lines = [HEADER, *(f"{image},verification,{label},{confidence}" for image, label, confidence in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def annotations(root: Path, split: str) -> Path:
    """File of a split's annotations."""
    return root / f"{split}-annotations-human-imagelabels.csv"


def targets(rows: Any, label_ids: list[str]) -> dict[str, list[int]]:
    """Targets of every image, in the order of a data set's rows."""
    dense = {}
    for image, positive, negative in zip(rows["image_id"], rows["positive"], rows["negative"], strict=True):
        assert not set(positive) & set(negative)
        row = [-1] * len(label_ids)
        for value, columns in enumerate((negative, positive)):
            for column in columns:
                row[column] = value
        dense[image] = row
    return dense


def naive_targets(path: Path, label_ids: list[str]) -> dict[str, list[int]]:
    """Targets of every image (1 present, 0 absent, -1 unknown), read line by line."""
    marks: dict[str, dict[str, set[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            image = marks.setdefault(row["ImageID"], defaultdict(set))
            image[row["LabelName"]].add(float(row["Confidence"]))
    return {
        image: [int(min(found[label])) if len(found[label]) == 1 else -1 for label in label_ids]
        for image, found in marks.items()
    }
