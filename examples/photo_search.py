r"""Search a photo library by tag: images are tagged once into a Parquet file, which is then searched.

    python examples/photo_search.py                                            # drawn scenes, in ./ovml-scenes
    python examples/photo_search.py photos/ --labels-file labels.txt --find harbour,dog \
        --model openai/clip-vit-base-patch16

An interrupted run resumes when it is called again. If the index exists, the script only searches.
"""

from __future__ import annotations

import argparse
from heapq import nlargest
from pathlib import Path

import pyarrow.parquet as pq

from ovml import Tagger, load_model
from ovml.data.synthetic.scenes import SEEN_LABELS, draw_scene
from ovml.utils.find_images import find_images
from ovml.vocabulary import read_vocabulary


def draw_library(folder: Path, size: int = 60) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(size):
        draw_scene(0, "test", i).image.save(folder / f"{i:03}.png")


def build_index(folder: Path, index: Path, model: str, labels_file: Path | None, tags: int) -> None:
    labels = read_vocabulary(labels_file) if labels_file else SEEN_LABELS
    tagger = Tagger(load_model(model), labels, top_k=tags)
    written = tagger.write(find_images([folder]), index)
    print(f"{index}: {written.rows} images ({written.resumed} before), {written.errors} could not be read")


def search(index: Path, label: str, best: int, threshold: float) -> list[tuple[float, str]]:
    """Return the images with a tag, best first; rows are read in batches."""
    rows = (row for batch in pq.ParquetFile(index).iter_batches() for row in batch.to_pylist())
    tags = ((tag["score"], row["image"]) for row in rows for tag in row["labels"] if tag["label"] == label)
    return nlargest(best, (tag for tag in tags if tag[0] >= threshold))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="photos (default: drawn scenes, in ./ovml-scenes)")
    parser.add_argument("--find", default="star,red circle,moon", help="tags, separated by commas")
    parser.add_argument("--labels-file", type=Path, help="all tags, one per line (default: those of the demo data set)")
    parser.add_argument("--index", type=Path, default=Path("photo_index.parquet"))
    parser.add_argument("--model", default="ovml-demo", help="run folder, checkpoint, or name of a CLIP checkpoint")
    parser.add_argument("--tags", type=int, default=10, help="tags per image in the index")
    parser.add_argument("--best", type=int, default=3, help="images shown per tag")
    parser.add_argument("--threshold", type=float, default=0.0, help="minimum score")
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
