"""A data set of your own: images in a folder, and a CSV file `image,labels` with their annotations.

    python examples/own_dataset.py            # a drawn folder
    python examples/own_dataset.py photos/    # with photos/labels.csv, which has lines such as `beach.jpg,sea;sand`

For training see `finetune_on_csv.py`. On the command line, in this file's folder: `ovml fit --config my.yaml`, where
`my.yaml` has `class_path: own_dataset.CSVDataModule`.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

from ovml import LabelVocabulary
from ovml.data import FolderDataModule
from ovml.data.base import Split
from ovml.data.synthetic.scenes import LABELS, draw_scene


class CSVDataModule(FolderDataModule):
    """Images below `root`, listed in a CSV file `image,labels` with labels separated by `;`.

    Args:
        root: Folder of the images.
        file: Path of the CSV file relative to `root`.
        unseen: Labels to exclude from training.
        kwargs: See `FolderDataModule` and `MultiLabelDataModule`.
    """

    title = "the CSV file's data set"
    has_validation = False  # validation uses the test split

    def __init__(self, root: str, file: str = "labels.csv", unseen: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.unseen = tuple(unseen or ())
        with (self.root / file).open(newline="", encoding="utf-8") as lines:
            rows = [(row["image"], row["labels"].split(";")) for row in csv.DictReader(lines)]
        self.lines = [(image, [name for name in labels if name]) for image, labels in rows]

    @property
    def vocabulary(self) -> LabelVocabulary:
        """All names in the file, seen labels first."""
        names = {name for _, labels in self.lines for name in labels}
        return LabelVocabulary(tuple(sorted(names.difference(self.unseen))), self.unseen)

    def read_annotations(self, split: Split) -> list[dict[str, Any]]:
        """Use every fifth line for testing, the others for training."""
        lines = [line for i, line in enumerate(self.lines) if (i % 5 == 4) == (split == "test")]
        return [{"image": image, "positive": labels} for image, labels in lines]


def draw_folder(size: int = 160) -> Path:
    """Draw images and write them with a `labels.csv` to a new temporary folder."""
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
    print(f"{data.root}: {len(data.vocabulary)} labels, {len(data.dataset('train'))} images for training")
    batch = next(iter(data.train_dataloader()))
    print({"pixel_values": [*batch["pixel_values"].shape], "labels": [*batch["labels"].shape]}, batch["image_id"][0])
