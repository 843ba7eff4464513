"""Bulk tagging: `ovml tag` against the zero-shot pipeline of transformers, and large vocabularies.

Usage: `python benchmarks/tagging.py [--images 64] [--labels 1000] [--clip vit-b-32] [--quick] [--json FILE]`

First table: the same images, labels, template and CLIP, on the processor, each side a process of its own from its start
to its end (Python, imports, loading, all labels of all images ranked). Processor seconds are those of all cores; unlike
those of the clock they hardly depend on what else the machine does.

- `ovml tag`: `python -m ovml tag FOLDER --labels-file FILE --prompt TEMPLATE --out tags.jsonl`. Labels are encoded
  once, images in batches of 32.
- pipeline: `pipeline("zero-shot-image-classification")(images, candidate_labels=labels, hypothesis_template=TEMPLATE)`,
  which encodes all labels again for each image. It is run on 1 and on 3 images; what one more image takes is added for
  the others, since it would run for the better part of an hour.

`vit-b-32` is a CLIP of the shape of openai/clip-vit-base-patch32 with random weights, which take the same time, and the
tokenizer of ovml-demo; `ovml-demo` is the embedded CLIP.

Second table: `TwoStreamHead` on 8 images of 196 patches, D = 512, 100,000 labels: labels in chunks, as it comes, and
all at once. Best of the rounds, in which both take turns; memory is the peak of a process that does one of them once,
and what that process had before (most of it PyTorch and the label embeddings).

`--quick` tags 8 images with 100 labels by ovml-demo, and scores 10,000 labels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from ovml.checkpoints import checkpoint_path, load_tokenizer
from ovml.data.demo_world import COLOURS, PATTERNS, SHAPES
from ovml.encoders import ImageFeatures
from ovml.heads import TwoStreamHead, local

TEMPLATE = "a photo of a {}"
FEW = 3
"""Images that the pipeline is run on."""
PIPELINE = """
import json, sys
from transformers import pipeline
model, images, labels, template, out = sys.argv[1:]
tag = pipeline("zero-shot-image-classification", model=model, device="cpu")
images, labels = json.loads(images), open(labels).read().splitlines()
with open(out, "w", buffering=1) as file:
    for image in images:
        ranked = tag(image, candidate_labels=labels, hypothesis_template=template)[:5]
        file.write(json.dumps({"image": image, "labels": ranked}) + "\\n")
"""


def write_images(folder: Path, count: int) -> list[str]:
    """JPEGs of 500 x 375 pixels."""
    draw = np.random.default_rng(0)
    paths = []
    for i in range(count):
        canvas = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        paths.append(str(folder / f"{i:04d}.jpg"))
        Image.fromarray(canvas).resize((500, 375), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def write_labels(path: Path, count: int) -> None:
    names = [" ".join(words) for words in product(PATTERNS, COLOURS, SHAPES)]
    names += [" ".join(words) for words in product(SHAPES, PATTERNS, COLOURS)]
    names += [f"{colour} {one} and {other}" for colour, one, other in product(COLOURS, SHAPES, SHAPES)]
    if count > len(names):
        raise SystemExit(f"--labels: {len(names)} at most")
    path.write_text("\n".join(names[:count]) + "\n")


def vit_b_32(folder: Path) -> str:
    """A random CLIP of the shape of openai/clip-vit-base-patch32."""
    tokenizer = load_tokenizer("ovml-demo")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        vision_config={"patch_size": 32},
        text_config={**ids, "pad_token_id": tokenizer.eos_token_id},
        projection_dim=512,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
    ).save_pretrained(folder)
    return str(folder)


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall-clock and processor seconds of a command."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def against_pipeline(clip: str, num_images: int, num_labels: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        images, labels = write_images(folder / "images", num_images), folder / "labels.txt"
        write_labels(labels, num_labels)
        model = vit_b_32(folder / "clip") if clip == "vit-b-32" else checkpoint_path(clip)
        tag = ["-m", "ovml", "tag", str(folder / "images"), "--labels-file", str(labels), "--model", model]
        ours = seconds([sys.executable, *tag, "--prompt", TEMPLATE, "--out", str(folder / "tags.jsonl")])
        assert len((folder / "tags.jsonl").read_text().splitlines()) == num_images

        def pipeline(count: int) -> tuple[float, float]:
            arguments = [model, json.dumps(images[:count]), str(labels), TEMPLATE, str(folder / "pipeline.jsonl")]
            return seconds([sys.executable, "-c", PIPELINE, *arguments])

        few = min(FEW, num_images)
        one, some = pipeline(1), pipeline(few)
        wall, processor = (a + (b - a) / (few - 1) * (num_images - 1) for a, b in zip(one, some, strict=True))
        theirs = wall, processor
    work = {"CLIP": clip, "images": num_images, "labels": num_labels}
    return [
        {**work, "way": way, "seconds": wall, "times faster": theirs[0] / wall, "processor seconds": processor}
        for way, (wall, processor) in {"ovml tag": ours, "pipeline": theirs}.items()
    ]


def score(num_labels: int, budget: int | None, rounds: int) -> tuple[list[float], float, float]:
    """Seconds of each round, and GiB before and at the peak."""
    torch.manual_seed(0)
    features = ImageFeatures(torch.randn(8, 512), torch.randn(8, 196, 512))
    label_embeds = torch.randn(num_labels, 512)
    local.CPU_BUDGET = budget or local.CPU_BUDGET
    head, times = TwoStreamHead(16), []
    before = peak_memory()
    with torch.inference_mode():
        for _ in range(rounds):
            start = time.perf_counter()
            head(features, label_embeds)
            times.append(time.perf_counter() - start)
    return times, before, peak_memory()


def peak_memory() -> float:
    """Most memory that this process had, in GiB; `ru_maxrss` would have the parent's, which it begins with."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20


def large_vocabulary(num_labels: int, rounds: int) -> list[dict[str, Any]]:
    ways = {"chunks": local.CPU_BUDGET, "all at once": 2**40}
    times: dict[str, list[float]] = {way: [] for way in ways}
    memory = {}
    for way, budget in ways.items():
        command = [sys.executable, __file__, "--score", str(num_labels), str(budget)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        memory[way] = json.loads(done.stdout)
    for _ in range(rounds):
        for way, budget in ways.items():
            times[way] += score(num_labels, budget, 1)[0]
    return [
        {
            "labels": num_labels,
            "way": way,
            "seconds": min(times[way]),
            "GiB before": memory[way][0],
            "GiB": memory[way][1],
        }
        for way in ways
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table."""
    table = [list(rows[0])]
    table += [[f"{v:.2f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for v in row.values()]
              for row in rows]  # fmt: skip
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    table.insert(1, ["-" * width for width in widths])
    for line in table:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--clip", choices=["vit-b-32", "ovml-demo"], default="vit-b-32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--score", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        print(json.dumps(score(*options.score, 1)[1:]))
        return
    if options.quick:
        options.images, options.labels, options.clip, options.rounds = 8, 100, "ovml-demo", 2
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print("; ".join(f"{name} {version}" for name, version in versions.items()), f"{os.cpu_count()} cores\n", sep="; ")
    results = {"pipeline": against_pipeline(options.clip, options.images, options.labels)}
    show(results["pipeline"])
    results["vocabulary"] = large_vocabulary(10_000 if options.quick else 100_000, options.rounds)
    show(results["vocabulary"])
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
