"""Growth: time and memory of tag, fit and evaluate at 10 and 100 times as many images, or labels.

Usage: `python benchmarks/growth.py [--quick] [--only TEXT] [--json FILE] [--no-docs]`

Each size runs in a process of its own on the CPU with ovml-demo: the towers cost little, and what grows is ovml's own
work. Only what the row names grows:

- tag, paths: `ovml tag --images-file` into JSON Lines. Of 100 paths one is an image of 32 x 32 pixels and 99 are of
  files that are not there, whose rows say so.
- tag, labels: `ovml tag` of 20 images with so many labels.
- fit, images: `ovml fit` on a folder with so many images in a table, of which ten batches are trained on.
- fit, labels: the same for 1,000 images and so many labels.
- evaluate, images and labels: `OpenVocabularyEvaluation` of random scores, 100 labels or 1,000 images.

Memory is the largest resident size of the process. The exponent is that of the growth above the smallest size, from the
second to the largest: 1 is linear. It is left out where the second size takes less than a tenth more than the smallest.

Without `--quick`, `--only` and `--no-docs` the table is written into docs/performance.md. `--quick` goes to a hundredth
of the sizes: that it runs, not how it grows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import human_bytes, human_seconds, in_fresh_process, machine, markdown, peak_bytes, put_table
from tagging import many_paths, measured, write_images

DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
OVML = [sys.executable, "-m", "ovml"]
Measured = dict[str, float]
LINKS = 50_000
"""Names that one file may have; ext4 allows 65,000."""


def tag_labels(count: int) -> Measured:
    """Tag 20 images with so many labels."""
    with tempfile.TemporaryDirectory() as name:
        folder, labels = Path(name), Path(name) / "labels.txt"
        (folder / "images").mkdir()
        write_images(folder / "images", 20)
        labels.write_text("".join(f"label {i}\n" for i in range(count)))
        command = [*OVML, "tag", str(folder / "images"), "--labels-file", str(labels), "--out", str(folder / "t.jsonl")]
        return measured(command)


def fit(images: int, labels: int) -> Measured:
    """Fit one stage on ten batches of a folder with a table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        folder.mkdir()
        files = write_images(Path(name), -(-images // LINKS))
        rows = ["image,labels\n"]
        for i in range(images):
            os.link(files[i // LINKS], folder / f"{i:07d}.jpg")
            # At least two images of each label, so that one can validate.
            own = {i % labels, *range(i, labels, images), *range((i + 1) % images, labels, images)}
            rows.append(f"{i:07d}.jpg,{'|'.join(f'label {j}' for j in sorted(own))}\n")
        (folder / "labels.csv").write_text("".join(rows))
        stages = "[{class_path: VisionStage, init_args: {epochs: 1, warmup_epochs: 0}}]"
        few = ["--trainer.limit_train_batches", "10", "--trainer.limit_val_batches", "2", "--data.held_out", "0.1"]
        few += ["--data.batch_size", "8", "--data.eval_batch_size", "8", "--data.num_workers", "0"]
        few += ["--data.cache_dir", str(Path(name) / "cache"), "--trainer.accelerator", "cpu"]
        model = ["--model.clip", "ovml-demo", "--model.head.top_k", "3", "--model.preprocessing", "null"]
        command = [*OVML, "--quiet", "fit", "--config", "own.yaml", "--data.root", str(folder), *model, *few]
        return measured([*command, "--model.stages", stages, "--trainer.default_root_dir", str(Path(name) / "runs")])


def evaluate(images: int, labels: int) -> Measured:
    """Evaluate random scores, in this process."""
    import torch

    from ovml.metrics import OpenVocabularyEvaluation
    from ovml.vocabulary import LabelVocabulary

    names = [f"label {i}" for i in range(labels)]
    evaluation = OpenVocabularyEvaluation()
    evaluation.prepare(LabelVocabulary(tuple(names[: labels // 2]), tuple(names[labels // 2 :])))
    used = resource.getrusage(resource.RUSAGE_SELF)
    before = used.ru_utime + used.ru_stime
    for start in range(0, images, 256):
        scores = torch.rand(min(256, images - start), labels)
        targets = (torch.rand_like(scores) < 0.01).to(torch.int8)
        evaluation.update(lambda columns, scores=scores: scores[:, columns], targets)  # type: ignore[misc]
    evaluation.finish("cpu", None, True)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"processor": used.ru_utime + used.ru_stime - before, "memory": peak_bytes()}


CASES: dict[str, tuple[int, Callable[[int], Measured]]] = {
    "tag, paths": (10_000, lambda n: many_paths(n, ".jsonl")),
    "tag, labels": (1_000, tag_labels),
    "fit, images": (10_000, lambda n: fit(n, 100)),
    "fit, labels": (1_000, lambda n: fit(1_000, n)),
    "evaluate, images": (10_000, lambda n: evaluate(n, 100)),
    "evaluate, labels": (1_000, lambda n: evaluate(1_000, n)),
}
"""The smallest size of each case, and what measures a size."""
FACTORS = (1, 10, 100)


def exponent(sizes: list[int], values: list[float]) -> str:
    """Exponent of the growth above the smallest size.

    >>> exponent([10, 100, 1000], [5 + 10, 5 + 100, 5 + 1000]), exponent([1, 10, 100], [5, 5, 5])
    ('1.00', '-')
    """
    (_, second, third), (first_value, *others) = sizes, values
    some, more = (value - first_value for value in others)
    if some < 0.1 * first_value or more <= 0:
        return "-"
    return f"{math.log(more / some) / math.log((third - sizes[0]) / (second - sizes[0])):.2f}"


def row(name: str, sizes: list[int], found: list[Measured]) -> list[str]:
    """A row of the table."""
    processor, memory = ([one[key] for one in found] for key in ("processor", "memory"))
    return [
        name,
        ", ".join(f"{size:,}" for size in sizes),
        ", ".join(map(human_seconds, processor)),
        exponent(sizes, processor),
        ", ".join(map(human_bytes, memory)),
        exponent(sizes, memory),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the sizes: that it runs")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name has this text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/performance.md as it is")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(CASES[args.case[0]][1](int(args.case[1]))))
        return
    rows, results = [], {}
    for name, (smallest, _) in CASES.items():
        if args.only not in name:
            continue
        sizes = [smallest * factor // (100 if args.quick else 1) for factor in FACTORS]
        found = []
        for size in sizes:
            print(f"{name}: {size:,}", file=sys.stderr)
            found.append(in_fresh_process(__file__, "--case", name, size))
        rows.append(row(name, sizes, found))
        results[name] = dict(zip(map(str, sizes), found, strict=True))
    header = ["what grows", "sizes", "processor time", "exponent", "memory", "exponent"]
    text = f"{markdown(header, rows)}\n\n{machine('transformers')}"
    print(text)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if not (args.quick or args.only or args.no_docs):
        put_table(DOCS, "python benchmarks/growth.py", text)


if __name__ == "__main__":
    main()
