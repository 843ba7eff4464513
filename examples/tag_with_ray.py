"""Tag images on all devices of a Ray cluster. An interrupted run resumes when it is called again.

pip install 'ovml[ray]'
python examples/tag_with_ray.py photos/ tags/ --labels "cat,dog,harbour" --model openai/clip-vit-base-patch16

Without a cluster the script starts Ray on this machine. On a cluster, run `ray start` and set RAY_ADDRESS=auto.
Read the result with `pandas.read_parquet("tags/")`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ovml.inference.ray import TaggerOptions, tag_with_ray
from ovml.saving import load_model
from ovml.vocabulary import check_names, read_vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", help="folder of images, text file of paths, or Parquet with a column 'image'")
    parser.add_argument("out", help="folder of Parquet files")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", help="names, separated by commas (default: the model's own)")
    labels.add_argument("--labels-file", type=Path, help="one name per line, or a CSV file with columns id,name")
    parser.add_argument("--model", default="ovml-demo", help="run folder, checkpoint, or name of a CLIP checkpoint")
    parser.add_argument("--prompt", action="append", help="template such as 'a photo of a {}'; several are averaged")
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-workers", type=int, help="tasks that read images at once (default: all free cores)")
    parser.add_argument("--workers", type=int, help="models at once (default: one per GPU, or per machine)")
    parser.add_argument("--device", help="cuda or cpu (default: cuda where the cluster has it)")
    parser.add_argument("--overwrite", action="store_true", help="overwrite the output and start over")
    args = parser.parse_args()

    vocabulary = check_names(args.labels.split(","), "--labels") if args.labels else None
    options = TaggerOptions(
        args.model,
        load_model,
        read_vocabulary(args.labels_file) if args.labels_file else vocabulary,
        top_k=args.top_k,
        threshold=args.threshold,
        prompt=args.prompt,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    written = tag_with_ray(
        args.images,
        options,
        args.out,
        workers=args.workers,
        device=args.device,
        overwrite=args.overwrite,
        on_rows=lambda written: print(f"{written.rows:,} images", flush=True),
    )
    print(f"{args.out}: {written.rows:,} images ({written.resumed:,} before), {written.errors:,} could not be read")


if __name__ == "__main__":
    main()
