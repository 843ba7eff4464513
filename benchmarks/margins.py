"""How close to linear MKT's ranking loss is, on scores that are normalised over labels.

Usage: `python benchmarks/margins.py [--images 256] [--labels 118 925] [--json FILE]`

Scores of the embedded world's training scenes by the untrained `ovml-demo` with the two-stream head, over its 118 seen
labels; and over 925 (NUS-WIDE's number), the others being further names of two and three words, marked absent. Of the
pairs of a present and an absent label: how many violate the margin of 1, and how much of the loss's gradient is that of
its linear form, the mean of all gaps (cosine of the two gradients; at 1 no pair is ever right enough to be left alone).
Rows differ in the temperature by which scores are divided first.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import torch
from common import machine, markdown
from torch import Tensor

from ovml import OVMultiLabelClassifier
from ovml.data import DemoDataModule
from ovml.data.synthetic.draw import COLOURS, PATTERNS, SHAPES
from ovml.losses import RankingLoss

TEMPERATURES = (1.0, 0.3, 0.1, 0.03, 0.01)


def scores_and_marks(images: int, labels: int) -> tuple[Tensor, Tensor]:
    """Scores `[images, labels]` and marks, 1 present and 0 absent."""
    data = DemoDataModule(train_size=images, eval_size=100, batch_size=images, augment=False)
    data.setup("fit")
    seen = data.vocabulary.seen
    more = [" ".join(words) for words in product(PATTERNS, COLOURS, SHAPES)]
    names = (*seen, *[name for name in more if name not in data.vocabulary.names])[:labels]
    model = OVMultiLabelClassifier("ovml-demo", stages=[]).eval()
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        scores = model(batch["pixel_values"], names)
    marks = torch.zeros(scores.shape, dtype=torch.long)
    marks[:, : len(seen)] = batch["labels"][:, : len(seen)].clamp(min=0)
    return scores, marks


def measure(scores: Tensor, marks: Tensor, temperature: float) -> dict[str, float]:
    """Share of violating pairs, and cosine with the linear form's gradient."""
    leaf = scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(RankingLoss(temperature=temperature)(leaf, marks), leaf)
    present, absent = (marks == 1).float(), (marks == 0).float()
    linear = absent / absent.sum(1, keepdim=True) - present / present.sum(1, keepdim=True).clamp(min=1)
    linear = linear * (present.sum(1, keepdim=True) > 0) / len(scores) / temperature
    violating = pairs = 0.0
    for row, is_present in zip(scores / temperature, present.bool(), strict=True):
        gaps = 1 + row[~is_present].unsqueeze(0) - row[is_present].unsqueeze(1)
        violating, pairs = violating + float((gaps > 0).sum()), pairs + gaps.numel()
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), linear.flatten(), dim=0)
    return {"violating": violating / pairs, "cosine": float(cosine)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--labels", type=int, nargs="+", default=[118, 925])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = []
    for labels in args.labels:
        scores, marks = scores_and_marks(args.images, labels)
        rows += [{"labels": labels, "temperature": t, **measure(scores, marks, t)} for t in TEMPERATURES]
    cells = [
        [f"{row['labels']:,}", f"{row['temperature']:g}", f"{100 * row['violating']:.1f} %", f"{row['cosine']:.4f}"]
        for row in rows
    ]
    print(markdown(["labels", "temperature", "pairs that violate the margin", "cosine with the linear form"], cells))
    print(f"\n{machine('transformers')}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
