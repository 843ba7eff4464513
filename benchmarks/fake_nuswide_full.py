"""Label files of NUS-WIDE's full size in the official layout, made up and without pictures, to time their reading.

Usage: `python benchmarks/fake_nuswide_full.py FOLDER` (1.2 GB)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ones = np.ndarray[tuple[int, int], np.dtype[np.bool_]]

ROWS = 20_000
"""Lines that are written at a time."""
FOLDERS = 704
"""Folders of pictures, as in the real set."""


def write(
    root: Path,
    num_train: int = 161_789,
    num_test: int = 107_859,
    num_tags: int = 1000,
    num_concepts: int = 81,
    seed: int = 0,
) -> None:
    """Write lists of images, tables of tags, the ground truth and the names of labels.

    Args:
        root: Folder of the data set; made where it is not there.
        num_train: Training images.
        num_test: Test images.
        num_tags: Columns of the tables of tags; nearly as many of them as there are concepts bear a concept's name.
        num_concepts: Unseen labels.
        seed: Of the labels: 6 tags and 2 concepts an image on average, as in the real set.
    """
    for folder in ("ImageList", "NUS_WID_Tags", "Groundtruth/AllLabels", "Groundtruth/TrainTestLabels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    size = num_train + num_test
    concepts = [f"concept{i}" for i in range(num_concepts)]
    shared = concepts[: min(num_concepts * 75 // 81, num_tags)]
    tags = random.permutation(shared + [f"tag{i}" for i in range(num_tags - len(shared))])
    (root / "Concepts81.txt").write_text("\n".join(concepts) + "\n")
    (root / "NUS_WID_Tags" / "TagList1k.txt").write_text("\n".join(tags) + "\n")

    # As in the real set, all images in the order of their folders, and those of the splits between each other.
    per_folder = -(-size // FOLDERS)
    ids = random.permutation(10 * size)[:size]
    names = [f"folder{i // per_folder:03d}\\{i % per_folder + 1:04d}_{number}.jpg" for i, number in enumerate(ids)]
    is_train = np.zeros(size, dtype=bool)
    is_train[random.permutation(size)[:num_train]] = True
    parts = {"": np.ones(size, dtype=bool), "Train": is_train, "Test": ~is_train}
    for part, chosen in parts.items():
        lines = [name for name, listed in zip(names, chosen, strict=True) if listed]
        (root / "ImageList" / f"{part}Imagelist.txt").write_text("\n".join(lines) + "\n")

    _write_tags(root / "NUS_WID_Tags", num_tags, is_train, random)
    for concept in concepts:
        ones = random.random(size) < 2 / num_concepts
        (root / "Groundtruth" / "AllLabels" / f"Labels_{concept}.txt").write_bytes(_lines(ones[:, None], "\n"))
        for part in ("Train", "Test"):
            path = root / "Groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{part}.txt"
            path.write_bytes(_lines(ones[parts[part], None], "\n"))


def _write_tags(folder: Path, num_tags: int, is_train: npt.NDArray[np.bool_], random: np.random.Generator) -> None:
    paths = [folder / name for name in ("AllTags1k.txt", "Train_Tags1k.dat", "Test_Tags1k.dat")]
    with open(paths[0], "wb") as whole, open(paths[1], "wb") as train, open(paths[2], "wb") as test:
        for start in range(0, len(is_train), ROWS):
            chosen = is_train[start : start + ROWS]
            ones = random.random((len(chosen), num_tags), dtype=np.float32) < 6 / num_tags
            for file, part in ((whole, ones), (train, ones[chosen]), (test, ones[~chosen])):
                file.write(_lines(part, "\t\n"))


def _lines(ones: Ones, end: str) -> bytes:
    """Lines of tab separated 0 and 1, as bytes."""
    rows, columns = ones.shape
    text = np.full((rows, 2 * columns - 1 + len(end)), ord("\t"), dtype=np.uint8)
    text[:, : 2 * columns : 2] = ones + np.uint8(ord("0"))
    text[:, -len(end) :] = np.frombuffer(end.encode(), dtype=np.uint8)
    return text.tobytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, metavar="FOLDER")
    write(parser.parse_args().root)
