"""Bulk tagging: `ovml tag` against a script with transformers, and its zero-shot pipeline; and a million paths.

Usage: `python benchmarks/tagging.py [--images 512] [--labels 1000] [--clip vit-b-32] [--repeats 3] [--pipeline]
[--paths 0] [--quick]`

First table: the same JPEGs of 640 x 480, labels, template and CLIP, on the processor, each side a process of its own
from its start to its end (Python, imports, loading, all labels of all images ranked, a file of rows). The sides take
turns, so that other load of the machine meets all of them; reported are medians. Processor seconds are those of all
cores; unlike those of the clock they hardly depend on what else the machine does.

- `ovml tag`: `python -m ovml tag FOLDER --labels-file FILE --prompt TEMPLATE --out tags.jsonl --no-cache`.
- `ovml tag, again`: the same with the label embeddings that an earlier run kept.
- `ovml tag, bf16`: the first with `--precision bf16`, where the processor multiplies it.
- script: a careful one, which loads the same `CLIPModel`, embeds labels once, in batches of similar length, and images
  in batches of the same size, and writes the best labels. It imports the classes that it needs and no others.
- pipeline (`--pipeline`): `pipeline("zero-shot-image-classification")(images, candidate_labels=labels,
  hypothesis_template=TEMPLATE)`, which encodes all labels again for each image. It is run on 1 and on 3 images; what
  one more image takes is added for the others, since it would run for the better part of an hour.

`ovml tag` scores by MKT's head, which compares each label with each patch too; the script compares it with the image.
`vit-b-32` is a CLIP of the shape of openai/clip-vit-base-patch32 with random weights, which take the same time, and the
tokenizer of ovml-demo; `ovml-demo` is the embedded CLIP. Aims are for 1,000 and for 20,000 labels at `vit-b-32`.

Second table (`--paths 1000000`): `ovml tag --images-file` of so many paths and of a hundredth of them, into each kind
of file: most memory that the command held. Of 100 paths one is a picture of 32 x 32 pixels and 99 are of files that are
not there, whose rows tell so: rows are what could pile up, and pictures take the time.

`--quick` tags 8 images with 100 labels by ovml-demo, and 10,000 paths.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch
import transformers
from common import human_bytes, machine, markdown
from PIL import Image

from ovml.data.synthetic.draw import COLOURS, PATTERNS, SHAPES
from ovml.encoders.checkpoints import checkpoint_path, load_tokenizer
from ovml.utils.devices import multiplies

TEMPLATE = "a photo of a {}"
FEW = 3
"""Images that the pipeline is run on."""
AIM = 1.3
"""Seconds of the script, divided by those of `ovml tag`."""
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizerFast
path, folder, labels, template, out = sys.argv[1:]
names = open(labels).read().splitlines()
model = CLIPModel.from_pretrained(path).eval()
tokenizer = CLIPTokenizerFast.from_pretrained(path)
processor = CLIPImageProcessorPil.from_pretrained(path)
texts = tokenizer([template.replace("{}", name) for name in names])["input_ids"]
order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
images = sorted(Path(folder).iterdir())
def normalized(found):
    found = found if isinstance(found, torch.Tensor) else found.pooler_output
    return found / found.norm(dim=-1, keepdim=True)
with torch.inference_mode(), open(out, "w") as file:
    embeds = torch.empty(len(names), model.config.projection_dim)
    for start in range(0, len(order), 256):
        some = order[start : start + 256]
        batch = tokenizer.pad({"input_ids": [texts[i] for i in some]}, return_tensors="pt")
        embeds[some] = normalized(model.get_text_features(**batch))
    for start in range(0, len(images), 32):
        some = images[start : start + 32]
        pixels = processor([Image.open(image).convert("RGB") for image in some], return_tensors="pt")
        best = (model.logit_scale.exp() * normalized(model.get_image_features(**pixels)) @ embeds.T).topk(5)
        for image, scores, columns in zip(some, best.values.tolist(), best.indices.tolist()):
            ranked = [{"label": names[c], "score": s} for s, c in zip(scores, columns)]
            file.write(json.dumps({"image": str(image), "labels": ranked}) + "\\n")
"""
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
    """JPEGs of 640 x 480 pixels, about 60 KB each."""
    draw = np.random.default_rng(0)
    paths = []
    for i in range(count):
        canvas = draw.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        paths.append(str(folder / f"{i:04d}.jpg"))
        Image.fromarray(canvas).resize((640, 480), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def write_labels(path: Path, count: int) -> None:
    names = [" ".join(words) for words in product(PATTERNS, COLOURS, SHAPES)]
    names += [" ".join(words) for words in product(SHAPES, PATTERNS, COLOURS)]
    names += [f"{colour} {one} and {other}" for colour, one, other in product(COLOURS, SHAPES, SHAPES)]
    names += [f"{one} beside {colour} {other}" for one, colour, other in product(SHAPES, COLOURS, SHAPES)]
    names += [" ".join(words) for words in product(PATTERNS, COLOURS, SHAPES, COLOURS, SHAPES)]
    names = list(dict.fromkeys(names))
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


def measured(command: list[str], cache: Path | None = None) -> dict[str, float]:
    """Seconds, processor seconds and most memory of a command."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OVML_CACHE": str(cache)}
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            errors.seek(0)
            raise SystemExit(errors.read())
    return {"seconds": seconds, "memory": usage.ru_maxrss * 1024, "processor": usage.ru_utime + usage.ru_stime}


def _prepared(folder: Path, clip: str, num_images: int, num_labels: int) -> tuple[str, list[str], Path]:
    """Model, images and file of labels."""
    (folder / "images").mkdir()
    images, labels = write_images(folder / "images", num_images), folder / "labels.txt"
    write_labels(labels, num_labels)
    return vit_b_32(folder / "clip") if clip == "vit-b-32" else checkpoint_path(clip), images, labels


def tag_command(model: str, folder: Path, labels: Path, *options: str) -> list[str]:
    """The command line of `ovml tag`, which writes `tags.jsonl` beside the folder of images."""
    command = ["-m", "ovml", "tag", str(folder / "images"), "--labels-file", str(labels), "--model", model]
    written = ["--out", str(folder / "tags.jsonl"), "--overwrite"]
    return [sys.executable, *command, "--prompt", TEMPLATE, "--device", "cpu", *written, *options]


def ovml_tag(clip: str, num_images: int, num_labels: int) -> dict[str, float]:
    """Measure `ovml tag` once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, _, labels = _prepared(folder, clip, num_images, num_labels)
        found = measured(tag_command(model, folder, labels, "--no-cache"))
        assert len((folder / "tags.jsonl").read_text().splitlines()) == num_images
        return found


def side_by_side(clip: str, num_images: int, num_labels: int, repeats: int) -> dict[str, dict[str, float]]:
    """Measure `ovml tag` in its ways and the script in turns; medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, _, labels = _prepared(folder, clip, num_images, num_labels)
        script = [sys.executable, "-c", SCRIPT, model, str(folder / "images"), str(labels), TEMPLATE]
        ways = {
            "ovml tag": tag_command(model, folder, labels, "--no-cache"),
            "script": [*script, str(folder / "tags.jsonl")],
            "ovml tag, again": tag_command(model, folder, labels),
        }
        if multiplies(torch.bfloat16):
            ways["ovml tag, bf16"] = tag_command(model, folder, labels, "--no-cache", "--precision", "bf16")
        measured(ways["ovml tag, again"], folder / "cache")
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, command in ways.items():
                runs[way].append(measured(command, folder / "cache"))
                assert len((folder / "tags.jsonl").read_text().splitlines()) == num_images, way
    return {way: {key: median(run[key] for run in found) for key in found[0]} for way, found in runs.items()}


def pipeline(clip: str, num_images: int, num_labels: int) -> dict[str, float]:
    """Measure transformers' pipeline on few images, and compute what all of them take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, images, labels = _prepared(folder, clip, num_images, num_labels)

        def run(count: int) -> dict[str, float]:
            arguments = [model, json.dumps(images[:count]), str(labels), TEMPLATE, str(folder / "pipeline.jsonl")]
            return measured([sys.executable, "-c", PIPELINE, *arguments])

        few = min(FEW, num_images)
        one, some = run(1), run(few)
    more = (num_images - 1) / (few - 1)
    grown = {key: one[key] + (some[key] - one[key]) * more for key in ("seconds", "processor")}
    return {**grown, "memory": some["memory"]}


def many_paths(count: int, suffix: str) -> dict[str, float]:
    """Measure `ovml tag` of a list of paths."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture, paths = folder / "picture.png", folder / "paths.txt"
        Image.new("RGB", (32, 32)).save(picture)
        with paths.open("w") as file:
            file.writelines(f"{folder / f'{i:09d}.png' if i % 100 else picture}\n" for i in range(count))
        command = [sys.executable, "-m", "ovml", "tag", "--images-file", str(paths), "--labels", "red circle,blue star"]
        return measured([*command, "--out", str(folder / f"tags{suffix}")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--clip", choices=["vit-b-32", "ovml-demo"], default="vit-b-32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pipeline", action="store_true", help="measure the pipeline too")
    parser.add_argument("--paths", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.images, options.labels, options.clip, options.paths = 8, 100, "ovml-demo", 10_000
        options.repeats = 1
    work = options.clip, options.images, options.labels
    sides: dict[str, dict[str, float]] = {}
    if options.images:
        sides = side_by_side(*work, options.repeats)
        if options.pipeline:
            sides["pipeline"] = pipeline(*work)
        script = sides["script"]
        cells = [
            [
                way,
                f"{row['seconds']:,.1f}",
                f"{script['seconds'] / row['seconds']:,.2f}",
                f"{row['processor']:,.1f}",
                f"{script['processor'] / row['processor']:,.2f}",
                human_bytes(row["memory"]),
            ]
            for way, row in sides.items()
        ]
        print(f"{options.clip}, {options.images} images, {options.labels:,} labels, {options.repeats} turns\n")
        header = ["way", "seconds", "script / it", "processor seconds", "script / it", "memory"]
        print(markdown(header, cells), end="\n\n")
        for way in ("ovml tag", "ovml tag, bf16"):
            if way in sides:
                ratio = script["seconds"] / sides[way]["seconds"]
                reached = "reached" if ratio >= AIM else "not reached"
                print(f"script / {way}: {ratio:.2f} of the clock (aim: {AIM} or more; {reached})")
        print(flush=True)
    counts = [options.paths // 100, options.paths] if options.paths else []
    rows = {
        f"{count:,} paths, {suffix}": many_paths(count, suffix)
        for suffix in (".jsonl", ".csv", ".parquet")
        for count in counts
    }
    if rows:
        cells = [[name, f"{row['seconds']:,.1f}", human_bytes(row["memory"])] for name, row in rows.items()]
        print(markdown(["work", "seconds", "memory"], cells), end="\n\n")
    print(machine("transformers"))
    if options.json:
        options.json.write_text(json.dumps({**sides, **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
