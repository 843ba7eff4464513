"""Tiny NUS-WIDE trees in the real layouts, written naively from one truth."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

TAGS = ("nature", "sky", "blue", "water", "black cat", "birds", "old")
CONCEPTS = ("birds", "sky", "zebra")
SEEN = ("nature", "blue", "water", "black cat", "old")
VOCABULARY = SEEN + CONCEPTS
FOLDERS = ("actor", "blue_sky", "sky")


@dataclass
class Truth:
    """What a tree says: for each split the images, and for each image its tags and concepts."""

    images: dict[str, list[str]]
    tags: dict[str, set[str]]
    concepts: dict[str, set[str]]
    order: list[str] = field(default_factory=list)

    def positive(self, image: str) -> list[int]:
        """Ids of the labels present: seen ones by tag, unseen ones by concept."""
        seen = [i for i, name in enumerate(SEEN) if name in self.tags[image]]
        return seen + [len(SEEN) + i for i, name in enumerate(CONCEPTS) if name in self.concepts[image]]


def make_truth(train: int = 7, test: int = 5, seed: int = 0) -> Truth:
    """Random labels; the tags `sky` and `birds` are drawn apart from the concepts of the same name."""
    rng = np.random.default_rng(seed)
    names = [f"{FOLDERS[i % 3]}/{i:04d}_{rng.integers(10**9)}.jpg" for i in range(train + test)]
    order = [str(name) for name in rng.permutation(names)]
    images = {"train": order[:train], "test": order[train:]}
    tags = {name: {tag for tag in TAGS if rng.random() < 0.4} for name in names}
    concepts = {name: {concept for concept in CONCEPTS if rng.random() < 0.4} for name in names}
    return Truth(images, tags, concepts, [str(name) for name in rng.permutation(names)])


def write_pictures(root: Path, truth: Truth) -> None:
    """Noise, so that the files are no smaller than real ones and no two are alike."""
    for number, name in enumerate(truth.order):
        path = root / "Flickr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path, quality=95)


def write_official(root: Path, truth: Truth, separator: str = "\t", trailing: bool = True, end: str = "\r\n") -> None:
    """The official distribution without the pictures."""

    def write(path: str, lines: list[str]) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes("".join(line + end for line in lines).encode())

    def row(image: str) -> str:
        bits = ["1" if tag in truth.tags[image] else "0" for tag in TAGS]
        return separator.join(bits) + (separator if trailing else "")

    def listed(images: list[str]) -> list[str]:
        return [image.replace("/", "\\") for image in images]

    write("NUS_WID_Tags/TagList1k.txt", list(TAGS))
    write("Concepts81.txt", list(CONCEPTS))
    write("ImageList/Imagelist.txt", listed(truth.order))
    write("NUS_WID_Tags/AllTags1k.txt", [row(image) for image in truth.order])
    # What Flickr users wrote: all wrong on purpose, since nothing may read it.
    write("NUS_WID_Tags/AllTags81.txt", [" ".join("1" * len(CONCEPTS))] * len(truth.order))
    for part, images in truth.images.items():
        write(f"ImageList/{part.capitalize()}Imagelist.txt", listed(images))
        write(f"NUS_WID_Tags/{part.capitalize()}_Tags1k.dat", [row(image) for image in images])
        write(f"NUS_WID_Tags/{part.capitalize()}_Tags81.txt", [" ".join("1" * len(CONCEPTS))] * len(images))
    for concept in CONCEPTS:
        groups = {"AllLabels/Labels_{}.txt": truth.order}
        groups |= {f"TrainTestLabels/Labels_{{}}_{part.capitalize()}.txt": i for part, i in truth.images.items()}
        for path, images in groups.items():
            lines = ["1" if concept in truth.concepts[image] else "0" for image in images]
            write("Groundtruth/" + path.format(concept), lines)


def write_h5(root: Path, truth: Truth, prefix: str = "", unknown: tuple[tuple[str, str], ...] = ()) -> None:
    """The layout of BiAM and MKT without the pictures: 1 present, -1 absent, 0 for the (image, label) in `unknown`."""
    import h5py

    (root / "features").mkdir(parents=True)
    (root / "Concepts925.txt").write_text("\n".join(SEEN))
    (root / "Concepts81.txt").write_text("\n".join(CONCEPTS))
    for part, images in truth.images.items():
        names = [prefix + image.replace("/", "_") for image in images]
        (root / f"{'test_' if part == 'test' else ''}img_names.pkl").write_bytes(
            pickle.dumps({"img_names": names}, protocol=2)
        )
        with h5py.File(root / "features" / f"nus_wide_{part}.h5", "w") as file:
            for name, image in zip(names, images, strict=True):
                marks = np.full(len(VOCABULARY), -1, np.int8)
                marks[truth.positive(image)] = 1
                marks[[VOCABULARY.index(label) for other, label in unknown if other == image]] = 0
                labels = marks[: len(SEEN)] if part == "train" else marks
                file.create_dataset(f"{name}-labels", data=labels, compression="gzip")
                file.create_dataset(f"{name}-labels_81", data=marks[len(SEEN) :], compression="gzip")
