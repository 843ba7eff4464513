"""H: evaluation of scores, and tagging of files."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from gpu_sections.base import Bench, Case, Run, check_installed, jpegs, label_names


def inference(bench: Bench) -> Iterator[Case]:
    """`Tagger` on JPEGs, labels without images, and the metrics of NUS-WIDE's size."""
    sizes, paths = bench.sizes, jpegs(bench, tempfile.mkdtemp())
    for mixed in (False, True):
        for batch in sizes.tag_batches:
            for threads in sizes.workers:
                figure = "limited by threads, 1,400-2,000 images/s" if mixed else "900-1,200 images/s"
                name = f"tagging, {'bf16' if mixed else '32-true'}, batches of {batch}, {threads} threads"
                yield Case(name, figure, partial(_tagging, bench, paths, batch, threads, mixed))
    yield Case(f"embedding {sizes.huge:,} labels", "1-2 s, and 10-30 s of tokenizing", partial(_many_labels, bench))
    labels = sizes.seen + sizes.unseen
    metrics = "1-2 ms a batch, then 1-2.5 s; 4-5 GB"
    yield Case(f"metrics of {sizes.evaluated:,} x {labels:,}", metrics, partial(_evaluation, bench))
    yield Case(f"average precision of {labels:,} labels by sort", "50-200 ms", partial(_by_sort, bench))


def _tagging(bench: Bench, paths: list[str], batch: int, threads: int, mixed: bool) -> Run:
    from ovml import Tagger

    torch.set_float32_matmul_precision("high")
    tagger = Tagger(bench.model(), label_names(bench.sizes.tag_labels), batch_size=batch, num_workers=threads)
    tagger.label_embeds()

    def run() -> dict[str, float]:
        with bench.mixed(mixed):
            list(tagger.tag(paths[:batch]))
            start = time.perf_counter()
            count = sum(1 for _ in tagger.tag(paths))
            return {"images/s": count / (time.perf_counter() - start)}

    return run


def _many_labels(bench: Bench) -> Run:
    model, names = bench.model(), label_names(bench.sizes.huge)

    def run() -> dict[str, float]:
        start = time.perf_counter()
        model.prompt.text_encoder.tokenize(names)
        tokenized = time.perf_counter()
        model.embed_labels(names).sum().item()
        return {"s": time.perf_counter() - tokenized, "s of tokenizing": tokenized - start}

    return run


def _scores(bench: Bench, images: int, labels: int) -> tuple[Tensor, Tensor]:
    return bench.randn(images, labels), bench.targets(images, labels)


def _evaluation(bench: Bench) -> Run:
    check_installed("torchmetrics")
    from ovml.metrics import OpenVocabularyEvaluation
    from ovml.vocabulary import LabelVocabulary

    sizes, batch = bench.sizes, 256
    names = tuple(label_names(sizes.seen + sizes.unseen))
    evaluation = OpenVocabularyEvaluation().to(bench.device)
    evaluation.prepare(LabelVocabulary(names[: sizes.seen], names[sizes.seen :]))

    def wait() -> float:
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def run() -> dict[str, float]:
        updates = []
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for start in range(0, sizes.evaluated, batch):
            scores, targets = _scores(bench, min(batch, sizes.evaluated - start), len(names))
            before = wait()
            evaluation.update(lambda columns, scores=scores: scores[:, columns], targets)  # type: ignore[misc]
            updates.append(wait() - before)
        before = wait()
        evaluation.finish(bench.device, None, True)
        found = {"ms a batch": statistics.median(updates) * 1000, "s at the end": wait() - before}
        if bench.device.type == "cuda":
            found["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
        return found

    return run


def _by_sort(bench: Bench) -> Run:
    scores, targets = _scores(bench, bench.sizes.evaluated, bench.sizes.seen + bench.sizes.unseen)

    def run() -> Tensor:
        hits = targets.gather(0, scores.argsort(dim=0, descending=True)).float()
        places = torch.arange(1, len(hits) + 1, device=hits.device).unsqueeze(1)
        return (hits * hits.cumsum(0) / places).sum(0) / hits.sum(0)

    return run
