"""A data set of one's own: pictures in a folder, and a CSV file `image,labels` that says what they show.

    python examples/own_dataset.py            # a drawn folder
    python examples/own_dataset.py photos/    # with photos/labels.csv, which has lines such as `beach.jpg,sea;sand`

For training see `finetune_on_csv.py`; on the command line, with this file's folder on the path:
`PYTHONPATH=examples ovml fit --config my.yaml`, where `my.yaml` says `class_path: own_dataset.CSVDataModule`.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ovml import LabelVocabulary
from ovml.data import FolderDataModule
from ovml.data.base import Split
from ovml.data.cache import Table, cached_table, record_batch
from ovml.data.synthetic.scenes import LABELS, draw_scene


class CSVDataModule(FolderDataModule):
    """Pictures below `root`, listed in a CSV file `image,labels` with `;` between the labels.

    Args:
        root: Folder of the pictures.
        file: The CSV file, from `root` on.
        unseen: Labels that training must not use.
        kwargs: See `FolderDataModule` and `MultiLabelDataModule`.
    """

    title = "the CSV file's data set"
    has_validation = False  # the test split serves

    def __init__(self, root: str, file: str = "labels.csv", unseen: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.file, self.unseen = self.root / file, tuple(unseen or ())
        with self.file.open(newline="", encoding="utf-8") as lines:
            rows = [(row["image"], row["labels"].split(";")) for row in csv.DictReader(lines)]
        self.lines = [(image, [name for name in labels if name]) for image, labels in rows]

    @property
    def vocabulary(self) -> LabelVocabulary:
        """All names in the file, seen ones first."""
        names = {name for _, labels in self.lines for name in labels}
        return LabelVocabulary(tuple(sorted(names.difference(self.unseen))), self.unseen)

    def read_annotations(self, split: Split) -> Table:
        """Every fifth line for testing, the others for training."""
        ids = {name: i for i, name in enumerate(self.vocabulary)}
        lines = [line for i, line in enumerate(self.lines) if (i % 5 == 4) == (split == "test")]

        def batches(counts: dict[str, int]) -> Iterator[pa.RecordBatch]:
            positive = [[ids[name] for name in labels] for _, labels in lines]
            paths = [str(self.root.resolve() / image) for image, _ in lines]
            yield record_batch(paths, pa.array(positive, pa.list_(pa.int32())), None, [image for image, _ in lines])

        settings = {"root": str(self.root.resolve()), "unseen": self.unseen}
        return cached_table(self.cache_dir, f"csv-{split}", [self.file], settings, batches)


def draw_folder(size: int = 160) -> Path:
    """Draw scenes and a `labels.csv` into a new temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="ovml-scenes-"))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "labels"])
        for i in range(size):
            scene = draw_scene(0, "train", i)
            scene.image.save(folder / f"{i:03}.png")
            lines.writerow([f"{i:03}.png", ";".join(LABELS[label] for label in scene.label_ids)])
    return folder


if __name__ == "__main__":
    data = CSVDataModule(sys.argv[1] if len(sys.argv) > 1 else str(draw_folder()), clip="ovml-demo", batch_size=8)
    print(f"{data.root}: {len(data.vocabulary)} labels, {len(data.dataset('train'))} pictures for training")
    batch = next(iter(data.train_dataloader()))
    print({"pixel_values": [*batch["pixel_values"].shape], "labels": [*batch["labels"].shape]}, batch["image_id"][0])
