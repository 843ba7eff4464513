"""Annotations of the size and form of Open Images V4, drawn from a seed; no pictures.

Usage: `python benchmarks/fake_openimages_full.py FOLDER [--num_images N] [--num_rows N] [--num_classes N] [--seed N]`

Writes a million rows in well under a second and never holds a whole file, so that reading can be measured on any disk.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

NUM_IMAGES = {"train": 9_011_219, "validation": 41_620, "test": 125_436}
NUM_ROWS = {"train": 27_894_289, "validation": 551_390, "test": 1_667_399}
NUM_CLASSES, NUM_TRAINABLE = 19_794, 7_186
IMAGES_AT_ONCE = 500_000
HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def write(
    root: Path,
    num_images: int = NUM_IMAGES["train"],
    num_rows: int = NUM_ROWS["train"],
    num_classes: int = NUM_CLASSES,
    seed: int = 0,
) -> None:
    """Write the files of all three splits; validation and test keep their real proportion to the training split.

    Every image has at least one row. Some pairs are marked twice, some both ways.

    Args:
        root: Folder, made if need be.
        num_images: Training images.
        num_rows: Rows of the training annotations.
        num_classes: Labels; 7,186 of 19,794 of them are trainable.
        seed: Of all that is drawn.
    """
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    classes = [f"/m/0{number:05x}" for number in range(num_classes)]
    names = (f'"Label, the {n}th"' if n % 50 == 0 else f"Label {n}" for n in range(num_classes))
    (root / "class-descriptions.csv").write_text(
        "".join(f"{label},{name}\r\n" for label, name in zip(classes, names, strict=True))
    )
    num_trainable = max(1, num_classes * NUM_TRAINABLE // NUM_CLASSES)
    trainable = np.sort(generator.choice(num_classes, num_trainable, replace=False))
    (root / "classes-trainable.txt").write_text("".join(f"{classes[number]}\n" for number in trainable))
    for split in NUM_IMAGES:
        images = max(1, num_images * NUM_IMAGES[split] // NUM_IMAGES["train"])
        rows = max(images, num_rows * NUM_ROWS[split] // NUM_ROWS["train"])
        ids = np.sort(generator.integers(0, 2**64, int(images * 1.01) + 9, dtype=np.uint64))
        ids = np.unique(ids)[:images]
        _write_annotations(root / f"{split}-annotations-human-imagelabels.csv", ids, rows, classes, generator)
        if split != "train":
            listed = pa.table({"ImageID": _hex(ids), "Subset": pa.array([split] * images)})
            csv.write_csv(listed, root / f"{split}-images-with-rotation.csv", csv.WriteOptions(quoting_style="none"))


def _write_annotations(
    path: Path, ids: np.ndarray[Any, Any], num_rows: int, classes: list[str], generator: np.random.Generator
) -> None:
    labels, sources = pa.array(classes), pa.array(["verification", "crowdsource-verification"])
    marks = pa.array(["0", "1"])
    names = ["ImageID", "Source", "LabelName", "Confidence"]
    schema = pa.schema([(name, pa.string()) for name in names])
    extra = generator.multinomial(num_rows - len(ids), np.full(_chunks(len(ids)), 1 / _chunks(len(ids))))
    with csv.CSVWriter(path, schema, write_options=csv.WriteOptions(quoting_style="none")) as writer:
        for number, start in enumerate(range(0, len(ids), IMAGES_AT_ONCE)):
            some = ids[start : start + IMAGES_AT_ONCE]
            per_image = 1 + np.bincount(generator.integers(0, len(some), extra[number]), minlength=len(some))
            count = int(per_image.sum())
            drawn = (len(classes) * generator.random(count) ** 3).astype(np.int64)  # few labels are frequent
            columns = [
                _hex(some).take(pa.array(np.repeat(np.arange(len(some)), per_image))),
                sources.take(pa.array((generator.random(count) < 0.1).astype(np.int8))),
                labels.take(pa.array(drawn)),
                marks.take(pa.array((generator.random(count) < 0.48).astype(np.int8))),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _chunks(num_images: int) -> int:
    return -(-num_images // IMAGES_AT_ONCE)


def _hex(numbers: np.ndarray[Any, Any]) -> pa.Array:
    """Sixteen hexadecimal digits of every number, as Open Images names its pictures."""
    digits = numbers.astype(">u8").view(np.uint8).reshape(-1, 8)
    text = np.stack([HEX[digits >> 4], HEX[digits & 15]], axis=-1).reshape(-1, 16)
    offsets = pa.array(np.arange(len(numbers) + 1, dtype=np.int32) * 16)
    return pa.StringArray.from_buffers(len(numbers), offsets.buffers()[1], pa.py_buffer(np.ascontiguousarray(text)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--num_images", type=int, default=NUM_IMAGES["train"])
    parser.add_argument("--num_rows", type=int, default=NUM_ROWS["train"])
    parser.add_argument("--num_classes", type=int, default=NUM_CLASSES)
    parser.add_argument("--seed", type=int, default=0)
    write(**vars(parser.parse_args()))
