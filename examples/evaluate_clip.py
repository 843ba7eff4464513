"""Evaluate a CLIP on your labels and images without training: zero-shot mAP and F1@k.

    python examples/evaluate_clip.py                                                    # the demo data set
    python examples/evaluate_clip.py photos/ labels.csv openai/clip-vit-base-patch16    # downloads 600 MB once

The CSV file has the columns `image,labels`: a path below the folder, and names separated by `;`. All names in the file
are the vocabulary; labels that a row does not list count as absent.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ovml import OVMultiLabelClassifier
from ovml.data.synthetic.scenes import LABELS, draw_scene
from ovml.heads import CosineHead
from ovml.metrics import MultilabelMeanAveragePrecision, PrecisionRecallF1AtK
from ovml.prompts import TemplatePrompt
from ovml.utils.images import ImageLike

TEMPLATES = ["a photo of a {}", "a picture of a {}", "there is a {} in the scene"]


def drawn_pictures(number: int = 100) -> tuple[list[ImageLike], list[set[str]]]:
    scenes = [draw_scene(0, "test", i) for i in range(number)]
    return [scene.image for scene in scenes], [{LABELS[i] for i in scene.label_ids} for scene in scenes]


def listed_pictures(folder: str, file: str) -> tuple[list[ImageLike], list[set[str]]]:
    with open(file, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    names = [{name.strip() for name in row["labels"].split(";") if name.strip()} for row in rows]
    return [Path(folder, row["image"]) for row in rows], names


def evaluate(
    clip: str, pictures: Sequence[ImageLike], present: Sequence[set[str]], ks: Sequence[int] = (1, 3)
) -> dict[str, Tensor]:
    labels = sorted(set().union(*present))
    model = OVMultiLabelClassifier(clip, labels, head=CosineHead(), prompt=TemplatePrompt(TEMPLATES), stages=[])
    mean_ap, at_k = MultilabelMeanAveragePrecision(), PrecisionRecallF1AtK([k for k in ks if k <= len(labels)])
    scores = model.score_images(pictures)  # [N, L]
    targets = torch.tensor([[int(label in names) for label in labels] for names in present])
    mean_ap.update(scores, targets)
    at_k.update(scores, targets)
    return {"mAP": mean_ap.compute(), **at_k.compute()}


if __name__ == "__main__":
    folder, file, clip = sys.argv[1:4] if len(sys.argv) > 3 else ("", "", "ovml-demo")
    pictures, present = listed_pictures(folder, file) if folder else drawn_pictures()
    for name, value in evaluate(clip, pictures, present).items():
        print(f"{name:5}  {100 * float(value):5.1f} %")
