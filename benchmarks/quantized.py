"""8-bit integers against float32: quality on the embedded data, and `ovml tag` of whole processes.

Usage: `python benchmarks/quantized.py [--scenes 1000] [--images 64] [--labels 1000] [--rounds 3] [--quick] [--no-docs]`

Quality: mean average precision of ovml-demo, zero-shot, on test scenes of the embedded data set; static quantization is
calibrated on training scenes.

Speed: `ovml tag FOLDER --out tags.jsonl` on JPEGs of 500 x 375 pixels, with a CLIP of the shape of ViT-B/32 (random
weights) and with its exported files, in turns; each a process of its own from its start to its end. Processor seconds
are those of all cores, which hardly depend on what else the machine does; of each side the median round counts. The
model embeds its labels at each start, a file has them beside it; `--labels` says how many.

Without `--quick` and `--no-docs` the tables are written into docs/export.md. `--quick` takes ovml-demo and few images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import machine, markdown, put_table
from tagging import TEMPLATE, measured, vit_b_32, write_images, write_labels

DOCS = Path(__file__).parents[1] / "docs" / "export.md"
FORMS = {"float32": [], "int8, calibrated": ["--quantize", "int8", "--calibrate"], "int8": ["--quantize", "int8"]}
OVML = [sys.executable, "-m", "ovml"]


def quality(scenes: int, work: Path) -> list[list[str]]:
    """Rows of the first table: mAP of unseen labels (ZSL) and of all (GZSL), in percent."""
    from ovml import OpenVocabularyModel, Tagger
    from ovml.data import DemoDataModule
    from ovml.inference.export import export_model
    from ovml.inference.exported import ExportedModel
    from ovml.metrics.functional import average_precision

    data = DemoDataModule(train_size=128, eval_size=scenes, augment=False)
    vocabulary = data.vocabulary
    rows, training = data.rows_of("test"), list(data.rows_of("train")["image"])
    targets = data_targets(rows["positive"], len(vocabulary))
    model = OpenVocabularyModel("ovml-demo", labels=vocabulary)
    found: dict[str, tuple[float, float]] = {}
    for name, options in {"the model itself": None, **FORMS}.items():
        tagged = model
        if options is not None:
            quantize: Any = "int8" if options else None
            images = training if "--calibrate" in options else None
            path = work / f"{len(found)}.onnx"
            tagged = ExportedModel(export_model(model, path, quantize=quantize, calibrate=images).path)
        scores = Tagger(tagged).score(rows["image"])
        unseen = slice(len(vocabulary.seen), None)
        zsl = average_precision(scores[:, unseen], targets[:, unseen])
        found[name] = float(zsl.nanmean()) * 100, float(average_precision(scores, targets).nanmean()) * 100
    first = found["the model itself"]
    return [
        [name, f"{zsl:.2f}", f"{zsl - first[0]:+.2f}", f"{gzsl:.2f}", f"{gzsl - first[1]:+.2f}"]
        for name, (zsl, gzsl) in found.items()
    ]


def data_targets(positive: Any, labels: int) -> Any:
    """Dense targets `[N, L]` of lists of label ids."""
    import torch

    targets = torch.zeros(len(positive), labels, dtype=torch.int8)
    for row, present in zip(targets, positive, strict=True):
        row[present] = 1
    return targets


def speed(clip: str, num_images: int, num_labels: int, rounds: int, work: Path) -> list[list[str]]:
    """Rows of the second table."""
    folder, labels = work / "images", work / "labels.txt"
    folder.mkdir()
    write_images(folder, num_images)
    write_labels(labels, num_labels)
    own = ["--labels-file", str(labels), "--model", clip, "--prompt", TEMPLATE]
    sides = {"the model itself": own}
    for name, options in FORMS.items():
        file = str(work / f"tag{len(sides)}.onnx")
        images = [str(folder)] if "--calibrate" in options else []
        measured([*OVML, "export", *own, *options, *images, "--out", file])
        sides[name] = ["--model", file]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, options in sides.items():
            command = [*OVML, "tag", str(folder), *options, "--out", str(work / "tags.jsonl"), "--overwrite"]
            taken[name].append(measured(command))
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in ("processor", "seconds")}
        for name, rows in taken.items()
    }
    first = medians["the model itself"]
    rows = []
    for name, row in medians.items():
        times = [[f"{row[key]:,.1f} s", f"{first[key] / row[key]:.2f}x"] for key in row]
        rows.append([name, *times[0], *times[1]])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few images and ovml-demo: that it runs, not how fast")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/export.md as it is")
    args = parser.parse_args()
    if args.quick:
        args.scenes, args.images, args.labels, args.rounds = 40, 8, 20, 1
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        near = quality(args.scenes, work)
        clip = "ovml-demo" if args.quick else vit_b_32(work / "clip")
        fast = speed(clip, args.images, args.labels, args.rounds, work)
    header = ["ovml-demo", "ZSL mAP", "difference", "GZSL mAP", "difference"]
    title = f"tagging, {'ovml-demo' if args.quick else 'ViT-B/32'}"
    text = (
        f"Quality on {args.scenes:,} drawn scenes; at most 0.3 points are aimed at:\n\n{markdown(header, near)}\n\n"
        f"`ovml tag` of {args.images:,} JPEGs with {args.labels:,} labels; 1.8x is aimed at:\n\n"
        f"{markdown([title, 'processor', 'faster', 'clock', 'faster'], fast)}\n\n"
        f"{machine('onnxruntime', 'transformers')}"
    )
    print(text)
    if not (args.quick or args.no_docs):
        put_table(DOCS, "python benchmarks/quantized.py", text)


if __name__ == "__main__":
    main()
