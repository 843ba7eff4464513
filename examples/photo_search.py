r"""A photo library that is searched by tag: tagged once into a Parquet file, asked any number of times.

    python examples/photo_search.py                                            # drawn scenes, in ./ovml-scenes
    python examples/photo_search.py photos/ --labels-file labels.txt --find harbour,dog \
        --model openai/clip-vit-base-patch16

Run again after a kill, it goes on where it was; run again when the index is there, it only searches.
"""

from __future__ import annotations

import argparse
from heapq import nlargest
from pathlib import Path

import pyarrow.parquet as pq

from ovml import Tagger
from ovml.data.synthetic.scenes import SEEN_LABELS, draw_scene
from ovml.inference.tagger import load_model
from ovml.utils.images import find_images
from ovml.vocabulary import read_vocabulary


def draw_library(folder: Path, size: int = 60) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(size):
        draw_scene(0, "test", i).image.save(folder / f"{i:03}.png")


def build_index(folder: Path, index: Path, model: str, labels_file: Path | None, tags: int) -> None:
    labels = read_vocabulary(labels_file) if labels_file else SEEN_LABELS
    tagger = Tagger(load_model(model), labels, top_k=tags)
    written = tagger.write(find_images([folder]), index)
    print(f"{index}: {written.rows} pictures ({written.resumed} before), {written.errors} could not be read")


def search(index: Path, label: str, best: int, threshold: float) -> list[tuple[float, str]]:
    """The pictures that have a tag, best first, read a batch of rows at a time."""
    rows = (row for batch in pq.ParquetFile(index).iter_batches() for row in batch.to_pylist())
    tags = ((tag["score"], row["image"]) for row in rows for tag in row["labels"] if tag["label"] == label)
    return nlargest(best, (tag for tag in tags if tag[0] >= threshold))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="photos (default: drawn scenes, in ./ovml-scenes)")
    parser.add_argument("--find", default="star,red circle,moon", help="tags, separated by commas")
    parser.add_argument("--labels-file", type=Path, help="all tags, one a line (default: the drawn world's)")
    parser.add_argument("--index", type=Path, default=Path("photo_index.parquet"))
    parser.add_argument("--model", default="ovml-demo", help="run folder, checkpoint, or name of a CLIP checkpoint")
    parser.add_argument("--tags", type=int, default=10, help="tags that the index keeps of each picture")
    parser.add_argument("--best", type=int, default=3, help="pictures shown per tag")
    parser.add_argument("--threshold", type=float, default=0.0, help="least score")
    args = parser.parse_args()
    if not args.index.exists():
        folder = args.folder or Path("ovml-scenes")
        if args.folder is None:
            draw_library(folder)
        build_index(folder, args.index, args.model, args.labels_file, args.tags)
    for label in args.find.split(","):
        print(label)
        for score, image in search(args.index, label.strip(), args.best, args.threshold):
            print(f"  {score:.3f}  {image}")


if __name__ == "__main__":
    main()
