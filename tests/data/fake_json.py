"""A tiny data set in JSON files, as later open-vocabulary work hands them out."""

import json
from pathlib import Path

from PIL import Image

SEEN = ["cat", "dog", "red car"]
UNSEEN = ["zebra", "boat"]

TRAIN = [
    ["train/0.png", ["cat"]],
    ["train/1.png", ["dog", "cat", "dog"]],
    ["train/2.png", []],
    ["train/3.png", ["dog"]],
]
GZSL = [["test/0.png", ["boat", "cat"]], ["test/1.png", ["zebra"]], ["test/2.png", ["red car"]]]


def unseen_only(images):
    """The images with their unseen labels alone."""
    return [[path, [label for label in labels if label in UNSEEN]] for path, labels in images]


def write_json(path, classes, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"classes": classes, "images": images}))


def write_tree(root, train=TRAIN, zsl=None, gzsl=GZSL, prefix=""):
    """Write pictures and the files train.json, zsl.json and gzsl.json; the paths in them begin with `prefix`.

    Returns:
        The arguments of `JSONDataModule`.
    """
    root = Path(root)
    lists = {
        "train": (SEEN, train),
        "zsl": (sorted(UNSEEN), unseen_only(gzsl) if zsl is None else zsl),
        "gzsl": (sorted(SEEN + UNSEEN), gzsl),
    }
    for role, (classes, images) in lists.items():
        for number, (path, _) in enumerate(images):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 16), (40 * number, 7, 9)).save(root / path)
        write_json(root / f"{role}.json", classes, [[prefix + path, labels] for path, labels in images])
    files = {f"{role}_file": f"{role}.json" for role in lists}
    return {"root": str(root), "cache_dir": str(root / "cache"), **files}
