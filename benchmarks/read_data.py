"""Annotations at full size: the first reading, opening them again; and pictures per second of the loader.

Usage: `python benchmarks/read_data.py [--quick] [--folder DIR] [--json FILE]`

- The annotation files of NUS-WIDE (269,648 images, 1,000 tags, 81 concepts; 1.2 GB) and Open Images V4 (9 million
  images, 28 million rows; 1.3 GB) are made up in their real layouts, without pictures, in `--folder` (deleted
  afterwards). Reading them for the first time, and opening what that left on disk, each run in a fresh process;
  memory is the whole process's peak. Theirs for NUS-WIDE: both tag matrices and the ground truth by
  `pandas.read_csv`; for Open Images: the training file by `csv.DictReader` into a dict of lists, at a tenth of the
  size (time and memory of the whole would be about ten times as much).
- The loader: JPEGs of 500 x 375 pixels in NUS-WIDE's layout through `NUSWIDEDataModule`'s loaders without workers,
  beside a plain loop over files (open, convert, the same transform, stack), one thread, both sides in turns.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import human_bytes, human_seconds, in_fresh_process, machine, markdown, peak_bytes

QUICK = 20
"""By how much `--quick` divides the sizes."""


def read(name: str, root: Path) -> dict[str, float]:
    """Seconds and bytes until the annotations of every split are there."""
    from ovml.data import NUSWIDEDataModule, OpenImagesDataModule

    data_set = {"nuswide": NUSWIDEDataModule, "openimages": OpenImagesDataModule}[name]
    start = time.perf_counter()
    data = data_set(root=str(root), cache_dir=str(root / "cache"))
    rows = {split: len(data.annotations(split).rows) for split in data.own_splits}
    labels = len(data.vocabulary)
    return {
        "seconds": time.perf_counter() - start,
        "memory": peak_bytes(),
        "labels": labels,
        "rows": sum(rows.values()),
    }


def read_naively(name: str, root: Path) -> dict[str, float]:
    """The same by the plain means of published code."""
    start = time.perf_counter()
    if name == "nuswide":
        import pandas as pd

        files = [*(root / "NUS_WID_Tags").glob("T*_Tags1k.dat"), *(root / "Groundtruth/TrainTestLabels").iterdir()]
        tables = [pd.read_csv(file, sep="\t", header=None) for file in files]
        count = sum(len(table) for table in tables)
    else:
        marks: dict[str, list[tuple[str, str]]] = defaultdict(list)
        with open(root / "train-annotations-human-imagelabels.csv", newline="") as file:
            for row in csv.DictReader(file):
                marks[row["ImageID"]].append((row["LabelName"], row["Confidence"]))
        count = len(marks)
    return {"seconds": time.perf_counter() - start, "memory": peak_bytes(), "rows": count}


def load(folder: Path, pictures: int, rounds: int) -> dict[str, float]:
    """Pictures per second of one thread: ours and a plain loop, evaluation and training."""
    import torch
    from PIL import Image
    from transforms import jpegs

    from ovml.data import NUSWIDEDataModule, RandAugment

    torch.set_num_threads(1)
    names = _tiny_nuswide(folder, jpegs(pictures, 500, 375))
    data = NUSWIDEDataModule(
        root=str(folder), cache_dir=str(folder / "cache"), clip="ovml-demo", rand_augment=RandAugment(), num_workers=0
    )
    own = data.image_processor
    vars(data)["_own_processor"] = replace(own, size=224, resize=256)  # a model of another size

    def plainly(transform: Callable[[Image.Image], Any]) -> None:
        for start in range(0, len(names), data.batch_size):
            batch = names[start : start + data.batch_size]
            torch.stack([transform(Image.open(folder / "Flickr" / name).convert("RGB")) for name in batch])

    ways: dict[str, Callable[[], object]] = {
        "evaluation, ours": lambda: list(data.test_dataloader()),
        "evaluation, plain": lambda: plainly(data.eval_transform),
        "training, ours": lambda: list(data.train_dataloader()),
        "training, plain": lambda: plainly(data.train_transform),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, run in ways.items():
            start = time.process_time()
            run()
            seconds[way].append(time.process_time() - start)
    return {way: len(names) / statistics.mean(times[1:]) for way, times in seconds.items()}


def _tiny_nuswide(root: Path, pictures: list[bytes]) -> list[str]:
    """The official layout with the same pictures in both splits."""
    import fake_nuswide_full

    fake_nuswide_full.write(root, len(pictures), len(pictures), num_tags=100, num_concepts=8)
    names: list[str] = []
    for part in ("Train", "Test"):
        names = (root / "ImageList" / f"{part}Imagelist.txt").read_text().replace("\\", "/").split()
        for name, content in zip(names, pictures, strict=True):
            path = root / "Flickr" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return names


def measure(name: str, folder: Path, shrink: int) -> list[dict[str, Any]]:
    """Rows of the table for one data set."""
    import fake_nuswide_full
    import fake_openimages_full

    root = folder / name
    if name == "nuswide":
        fake_nuswide_full.write(root, 161_789 // shrink, 107_859 // shrink)
        naive_root = root
    else:
        fake_openimages_full.write(root, 9_011_219 // shrink, 27_894_289 // shrink)
        naive_root = folder / "tenth"
        fake_openimages_full.write(naive_root, 901_121 // shrink, 2_789_428 // shrink)
    first, again = (in_fresh_process(__file__, "--read", name, root) for _ in range(2))
    naive = in_fresh_process(__file__, "--naive", name, naive_root)
    title = {"nuswide": "NUS-WIDE", "openimages": "Open Images"}[name]
    what = f"{title}: {first['rows']:,} images, {first['labels']:,} labels"
    tenth = "" if name == "nuswide" else ", a tenth of it"
    shutil.rmtree(root)
    shutil.rmtree(naive_root, ignore_errors=True)
    return [
        {"name": f"{what}, first time", "ours": first, "theirs": naive, "note": tenth},
        {"name": f"{what}, afterwards", "ours": again, "theirs": naive, "note": tenth},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"at 1/{QUICK} of the size")
    parser.add_argument("--folder", type=Path, help="where the made-up files go (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--naive", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read or args.naive:
        name, root = args.read or args.naive
        print(json.dumps((read if args.read else read_naively)(name, Path(root))))
        return
    if args.load:
        folder, pictures, rounds = args.load
        print(json.dumps(load(Path(folder), int(pictures), int(rounds))))
        return
    shrink = QUICK if args.quick else 1
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = [row for name in ("nuswide", "openimages") for row in measure(name, Path(folder), shrink)]
        loader = in_fresh_process(__file__, "--load", Path(folder) / "pictures", 64, 2 if args.quick else 10, threads=1)
    cells = [
        [
            row["name"],
            human_seconds(row["ours"]["seconds"]),
            human_bytes(row["ours"]["memory"]),
            human_seconds(row["theirs"]["seconds"]) + row["note"],
            human_bytes(row["theirs"]["memory"]),
        ]
        for row in rows
    ]
    print(markdown(["annotations", "ours", "peak memory", "plain reading", "peak memory"], cells))
    print()
    cells = [
        [way, *(f"{loader[f'{way}, {side}']:,.0f}" for side in ("ours", "plain"))] for way in ("evaluation", "training")
    ]
    print(markdown(["loader, pictures per second of one core", "ours", "plain loop"], cells))
    print(f"\n{machine('datasets', 'pyarrow', 'pillow')}")
    if args.json:
        args.json.write_text(json.dumps({"annotations": rows, "loader": loader}, indent=1) + "\n")


if __name__ == "__main__":
    main()
