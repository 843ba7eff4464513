"""Scores without training, part by part, against the cosine of the same CLIP; prints one Markdown table.

Usage: `python benchmarks/training_free.py [--clip ovml-demo] [--photos DIR] [--images 300] [--pool 300] [--seeds 0 1 2]
[--mkt RUN] [--only TEXT] [--no-docs]`

Data: scenes of ovml-demo's synthetic data set; or, with `--photos`, the photographs of COCO in `coco_photos.parquet`
with Flickr8k's (`flickr8k/train.parquet`) as the pool and its captions. A CLIP that knows photographs (`--clip FOLDER`)
is needed for the second. What is fitted is fitted on the pool, whose labels nobody reads; captions are made of label
names for scenes.

A seed draws scenes, pool and the order of captions; mAP (over the labels that occur) and F1@3 are means over the seeds,
in percent, with the deviation where there are several. Labels are read as "There is a {} in the scene", ovml's default,
or for photographs as "a photo of a {}", except where the row says otherwise. Each row runs in a process of its own,
forked with one thread. Time is that of the processor for an image, without reading it; its ratio is to plain passes
through the same tower, run in turn with it, over the first four batches. Memory is by how much the process grows over
the first batch of 32, divided by its images; a row that was fitted has none, because the fit leaves memory that is used
again. `--mkt` adds a trained run as a row.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import random
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import human_bytes, machine, markdown, peak_bytes, put_table
from PIL import Image
from torch import Tensor

from ovml.data.synthetic.scenes import LABELS, draw_scene
from ovml.encoders.sources import ITACLIP, SCCLIP, SCLIP, CLIPSurgery, MaskCLIP, PatchSource
from ovml.heads import (
    CosineHead,
    GaussianHead,
    Head,
    PatchSoftmaxHead,
    PromptFusionHead,
    SpatialSoftmaxHead,
    StandardizedHead,
    SurgeryHead,
)
from ovml.inference.adapt import adapt
from ovml.inference.second_pass import SecondPass
from ovml.inference.views import AveragedViews
from ovml.metrics.functional import average_precision
from ovml.metrics.functional.f1_at_k import count_at_k, precision_recall_f1
from ovml.model import OpenVocabularyModel
from ovml.prompts import CoOpPrompt, EnsemblePrompt, PromptLearner, TemplatePrompt
from ovml.prompts.base import MKT_TEMPLATE
from ovml.saving import load_model
from ovml.training.captions import caption_targets, learn_from_captions
from ovml.training.stages import PromptStage
from ovml.vocabulary import LabelVocabulary, packaged_vocabulary

DOCS = Path(__file__).parents[1] / "docs" / "training_free.md"
COMMAND = "python benchmarks/training_free.py"
BATCH, TIMED, K = 32, 4, 3
COLUMNS = ("mAP", "F1@3", "passes", "ms an image", "of a plain pass", "memory an image", "fit, ms an image")


class Data(NamedTuple):
    """What a seed draws.

    Attributes:
        labels: All labels.
        images: Images with labels.
        targets: `[N, L]`.
        pool: Images whose labels nobody reads.
        captions: Sentences.
        background: Names that are no labels.
        template: What labels are read in.
    """

    labels: LabelVocabulary
    images: list[Image.Image]
    targets: Tensor
    pool: list[Image.Image]
    captions: list[str]
    background: tuple[str, ...]
    template: str


class Scorer(NamedTuple):
    """Scores a batch `[B, 3, H, W]`, and tells the passes through the tower for an image."""

    score: Callable[[Tensor], Tensor]
    passes: Callable[[], float]
    fit_seconds: float = 0.0


class Bench:
    """Makes the scorers of one CLIP on one seed's data."""

    def __init__(self, clip: str, data: Data) -> None:
        self.clip = clip
        self.data = data
        plain = self.model(CosineHead())
        self.cosine = of_model(plain)
        self.pixels = torch.stack([plain.image_processor(image) for image in data.images])

    def model(
        self, head: Head, source: PatchSource | None = None, prompt: PromptLearner | None = None
    ) -> OpenVocabularyModel:
        """The CLIP with a head, a patch source and a prompt."""
        prompt = prompt or TemplatePrompt(self.data.template)
        return OpenVocabularyModel(self.clip, self.data.labels, head=head, patch_source=source, prompt=prompt).eval()

    def itaclip(self) -> ITACLIP:
        """Blocks 7, 8 and 10 of 12, or those at the same depth."""
        number = self.model(CosineHead()).image_encoder.num_layers
        return ITACLIP(sorted({round(block * number / 12) for block in (7, 8, 10)}))

    def plain(self, *parts: Any) -> Scorer:
        """Parts that need nothing else; see `model`."""
        return of_model(self.model(*parts))

    def fitted(self, head: Head, source: PatchSource | None = None) -> Scorer:
        """A head that is fitted on the pool."""
        model = self.model(head, source)
        start = time.process_time()
        adapt(model, self.data.pool, batch_size=BATCH, num_workers=0)
        return of_model(model)._replace(fit_seconds=(time.process_time() - start) / len(self.data.pool))

    def second(self, threshold: float = 0.5, prompt: PromptLearner | None = None) -> Scorer:
        """TagCLIP; with a threshold of 1 no label scores again."""
        second = SecondPass(self.model(CosineHead(), None, prompt), threshold, self.data.background)
        return of_wrapper(second, lambda: second.passes)

    def second_after(self, model: OpenVocabularyModel) -> Scorer:
        """The second pass after a model's own head."""
        second = SecondPass(model, background=self.data.background, first="head")
        return of_wrapper(second, lambda: second.passes)

    def piaa(self) -> OpenVocabularyModel:
        """A model with PIAA's head, fitted on the pool."""
        model = self.model(GaussianHead(), SCLIP())
        adapt(model, self.data.pool, batch_size=BATCH, num_workers=0)
        return model

    def from_captions(self, grain: Any, head: Head, source: PatchSource | None = None) -> Scorer:
        """A prompt that learned from captions."""
        torch.manual_seed(0)
        model = self.model(head, source, CoOpPrompt(16, self.data.template.partition(" {}")[0]))
        start = time.process_time()
        stage = PromptStage(epochs=10, batch_size=64)
        learn_from_captions(model, self.data.captions, grain=grain, stage=stage)
        return of_model(model)._replace(fit_seconds=(time.process_time() - start) / len(self.data.captions))

    def compound(self) -> PromptFusionHead:
        """Prompts of several labels: captions that name two or more, whatever the images show."""
        several = caption_targets(self.data.captions, self.data.labels).sum(dim=1) > 1
        named = [caption for caption, has in zip(self.data.captions, several.tolist(), strict=True) if has]
        return PromptFusionHead(list({caption.lower(): caption for caption in named}.values())[:200])

    def views(self) -> Scorer:
        """ITACLIP's image engineering."""
        return of_wrapper(AveragedViews(self.model(PatchSoftmaxHead(), self.itaclip())), lambda: 5)


def of_model(model: OpenVocabularyModel) -> Scorer:
    """Scores by the model's head."""
    label_embeds = model.embed_labels()
    return Scorer(lambda pixels: model.score(model.encode_images(pixels), label_embeds), lambda: 1)


def of_wrapper(wrapper: SecondPass | AveragedViews, passes: Callable[[], float]) -> Scorer:
    """Scores by a wrapper of a model."""
    label_embeds, scorer = wrapper.model.embed_labels(), wrapper
    return Scorer(lambda pixels: scorer.score(scorer.encode_images(pixels), label_embeds), passes)  # type: ignore[arg-type]


ROWS: dict[str, Callable[[Bench], Scorer]] = {
    "cosine": lambda b: b.plain(CosineHead()),
    "cosine, 80 templates": lambda b: b.plain(CosineHead(), None, EnsemblePrompt("openai.txt")),
    "cosine, prompt from captions": lambda b: b.from_captions("captions", CosineHead()),
    "standardised rows": lambda b: b.plain(StandardizedHead()),
    "standardised rows and columns (pool)": lambda b: b.fitted(StandardizedHead(columns=True)),
    "SPARC: compound prompts (pool)": lambda b: b.fitted(b.compound()),
    "CLIP Surgery": lambda b: b.plain(SurgeryHead(), CLIPSurgery()),
    "best patch, plain patches": lambda b: b.plain(PatchSoftmaxHead()),
    "best patch, MaskCLIP": lambda b: b.plain(PatchSoftmaxHead(), MaskCLIP()),
    "best patch, MaskCLIP, background": lambda b: b.plain(PatchSoftmaxHead(background=b.data.background), MaskCLIP()),
    "best patch, SCLIP": lambda b: b.plain(PatchSoftmaxHead(), SCLIP()),
    "best patch, ITACLIP": lambda b: b.plain(PatchSoftmaxHead(), b.itaclip()),
    "best patch, ITACLIP, averaged views": lambda b: b.views(),
    "best patch, CLIP Surgery's": lambda b: b.plain(PatchSoftmaxHead(), CLIPSurgery()),
    "best patch, SC-CLIP": lambda b: b.plain(PatchSoftmaxHead(), SCCLIP()),
    "words of captions, SCLIP": lambda b: b.from_captions("words", SpatialSoftmaxHead(1 / 50), SCLIP()),
    "PIAA, SCLIP (pool)": lambda b: b.fitted(GaussianHead(), SCLIP()),
    "PIAA, ITACLIP (pool)": lambda b: b.fitted(GaussianHead(), b.itaclip()),
    "PIAA, SC-CLIP (pool)": lambda b: b.fitted(GaussianHead(), SCCLIP()),
    "TagCLIP, refined only": lambda b: b.second(threshold=1),
    "TagCLIP": lambda b: b.second(),
    "TagCLIP, 85 templates": lambda b: b.second(prompt=EnsemblePrompt("tagclip.txt")),
    "second pass after the best patch, SCLIP": lambda b: b.second_after(b.model(PatchSoftmaxHead(), SCLIP())),
    "second pass after PIAA, SCLIP (pool)": lambda b: b.second_after(b.piaa()),
}


def scenes(seed: int, images: int, pool: int) -> Data:
    """Scenes of ovml-demo's data set, and captions of random labels."""
    drawn = [draw_scene(seed, "test", number) for number in range(images)]
    targets = torch.zeros(images, len(LABELS), dtype=torch.int8)
    for row, scene in zip(targets, drawn, strict=True):
        row[scene.label_ids] = 1
    draw, forms = random.Random(seed), ["a {}", "a {} and a {}", "a {} next to a {}", "a {}, a {} and a {}"]
    captions = [form.format(*draw.sample(LABELS, form.count("{}"))) for form in draw.choices(forms, k=600)]
    others = [draw_scene(seed, "train", number).image for number in range(pool)]
    background = ("background", "paper", "grid", "noise", "stripes")
    shown = [scene.image for scene in drawn]
    return Data(LabelVocabulary(LABELS), shown, targets, others, captions, background, MKT_TEMPLATE)


def photographs(folder: Path, seed: int, images: int, pool: int) -> Data:
    """Photographs of COCO with their labels, and Flickr8k's with captions."""
    import pandas as pd

    from ovml.prompts.texts import packaged_background

    labels = packaged_vocabulary("coco")
    rows = pd.read_parquet(folder / "coco_photos.parquet").sample(frac=1, random_state=seed)[:images]
    others = pd.read_parquet(folder / "flickr8k" / "train.parquet").sample(frac=1, random_state=seed)
    column = {name: i for i, name in enumerate(labels.names)}
    targets = torch.zeros(len(rows), len(labels), dtype=torch.int8)
    for row, own in zip(targets, rows.labels, strict=True):
        row[[column[name] for name in own]] = 1
    captions = [caption for own in others.captions[:1000] for caption in own]
    background = packaged_background("coco")
    shown, unread = opened(rows.image), opened(others.image[:pool])
    return Data(labels, shown, targets, unread, captions, background, "a photo of a {}")


def opened(images: Any) -> list[Image.Image]:
    return [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in images]


def measure(bench: Bench, make: Callable[[Bench], Scorer]) -> dict[str, float]:
    """One row of one seed: metrics, time, memory."""
    scorer, plain, pixels = make(bench), bench.cosine, bench.pixels
    scores, seconds, plain_seconds, grown = [], 0.0, 0.0, 0.0
    with torch.inference_mode():
        for number, batch in enumerate(pixels.split(BATCH)):
            if number == 0:
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
                ballast = b"\1" * max(0, peak_bytes() - resident)  # what was given back hides nothing
                before = peak_bytes()
                scorer.score(batch)
                grown = (peak_bytes() - before) / len(batch)
                del ballast
                plain.score(batch)
            start = time.process_time()
            scores.append(scorer.score(batch))
            middle = time.process_time()
            if number < TIMED:
                plain.score(batch)
                seconds, plain_seconds = seconds + middle - start, plain_seconds + time.process_time() - middle
    targets, found = bench.data.targets, torch.cat(scores)
    return {
        "mAP": 100 * float(average_precision(found, targets).nanmean()),
        "F1": 100 * float(precision_recall_f1(count_at_k(found, targets, K), K)[2]),
        "passes": scorer.passes(),
        "seconds": seconds / len(pixels[: TIMED * BATCH]),
        "ratio": seconds / plain_seconds,
        "memory": grown,
        "fit": scorer.fit_seconds,
    }


def in_fork(work: Callable[[], dict[str, float]]) -> dict[str, float] | None:
    """Run work in a forked process; `None` where it cannot run, such as a source that does not fit the tower."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        try:
            theirs.send(work())
        except Exception as error:
            print(f"left out: {error}", flush=True)
            theirs.send(None)

    process = context.Process(target=child)
    process.start()
    theirs.close()
    found: dict[str, float] | None = ours.recv()
    process.join()
    return found


def cells(name: str, found: list[dict[str, float]]) -> list[str]:
    """A row of the table, over seeds."""

    def mean(key: str) -> float:
        return statistics.mean(one[key] for one in found)

    def with_spread(key: str) -> str:
        spread = f" ± {statistics.stdev(one[key] for one in found):.1f}" if len(found) > 1 else ""
        return f"{mean(key):.1f}{spread}"

    fit = f"{1000 * mean('fit'):.1f}" if mean("fit") else ""
    time_of = [f"{1000 * mean('seconds'):.1f}", f"{mean('ratio'):.1f}x"]
    passes = f"{mean('passes'):.1f}"
    memory = "" if fit else human_bytes(mean("memory"))  # a fit leaves memory that is used again
    return [name, with_spread("mAP"), with_spread("F1"), passes, *time_of, memory, fit]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clip", default="ovml-demo", help="a CLIP's folder or name")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="photographs, instead of drawn scenes")
    parser.add_argument("--images", type=int, default=300, help="images that are scored")
    parser.add_argument("--pool", type=int, default=300, help="images without labels that heads are fitted on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--mkt", metavar="RUN", help="a trained run, as a row")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name has this text")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/training_free.md as it is")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OVML_QUIET"] = "1"
    rows = dict(ROWS)
    if args.mkt:
        rows["MKT, trained"] = lambda b: of_model(load_model(args.mkt, labels=b.data.labels))
    rows = {name: make for name, make in rows.items() if args.only in name}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    for seed in args.seeds:
        sizes = seed, args.images, args.pool
        data = photographs(args.photos, *sizes) if args.photos else scenes(*sizes)
        bench = Bench(args.clip, data)
        for name, make in rows.items():
            one = in_fork(lambda make=make, bench=bench: measure(bench, make))  # type: ignore[misc]
            print(f"seed {seed}, {name}: {one and round(one['mAP'], 1)}", flush=True)
            found[name] += [one] if one else []
    table = markdown(["scores by", *COLUMNS], [cells(name, own) for name, own in found.items() if own])
    kind = "photographs of COCO" if args.photos else "scenes"
    what = f"{args.clip}, {args.images} {kind} with {len(data.labels)} labels, pool of {args.pool}"
    text = f"{table}\n\n{what}, seeds {', '.join(map(str, args.seeds))}; {machine('transformers')}, one thread"
    print(f"\n{text}")
    if not (args.no_docs or args.photos or args.only or args.mkt or args.clip != "ovml-demo"):
        put_table(DOCS, COMMAND, text)


if __name__ == "__main__":
    main()
