"""B and C: the training steps of both stages, data on the device, without Lightning's loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from gpu_sections.base import Bench, Case, LeftOutError, Run, label_names

TFLOP = 53.2e9 / 1e12
"""Of an image: forward through all blocks, backward through two, the teacher's two; counted by `FlopCounterMode`."""


def stage_1(bench: Bench) -> Iterator[Case]:
    """Forward, backward and optimizer step of the vision stage, 925 labels."""
    small, *larger = bench.sizes.batches
    variants: dict[str, tuple[str, dict[str, Any]]] = {
        "32-true": ("75-85 ms, 750-850 images/s", {"matmul": "highest"}),
        "32-true by TF32": ("22-27 ms, 2,400-2,900 images/s", {}),
        "bf16-mixed": ("12-15 ms and 1-4 of the host, 4,000-5,000 images/s; 880 launches, 7 waits", {"mixed": True}),
        "bf16-mixed, fused AdamW": ("0.6 ms less of the host", {"mixed": True, "fused": True}),
        "bf16-mixed, compiled": ("9-11 ms, 5,800-7,000 images/s", {"mixed": True, "compiled": True}),
    }
    for name, (expected, options) in variants.items():
        step = partial(_vision_step, bench, small, **options)
        yield Case(f"stage 1, {small} images, {name}", expected, step, _work(bench, small))
    for batch in larger:
        for name in ("32-true by TF32", "bf16-mixed", "bf16-mixed, compiled"):
            step = partial(_vision_step, bench, batch, **variants[name][1])
            expected = f"{batch // small} times the device's time, the same of the host"
            yield Case(f"stage 1, {batch} images, {name}", expected, step, _work(bench, batch))


def _work(bench: Bench, images: int) -> dict[str, float]:
    return {"images/s": images} | ({} if bench.sizes.toy else {"TFLOP/s": images * TFLOP})


def _vision_step(
    bench: Bench, batch: int, matmul: str = "high", mixed: bool = False, compiled: bool = False, fused: bool = False
) -> Run:
    from ovml import OVMultiLabelClassifier, VisionStage
    from ovml.encoders.held import hold_frozen
    from ovml.training.objective import ROWS
    from ovml.training.optim import fuse
    from ovml.training.step_rows import StepRows

    _check_compiler(bench, compiled)
    torch.set_float32_matmul_precision(matmul)
    labels, stage = label_names(bench.sizes.seen), VisionStage()
    options: dict[str, Any] = {"tokenizer": bench.tokenizer(), "stages": [stage], "compile": compiled}
    classifier = OVMultiLabelClassifier(bench.clip(), labels, **options).to(bench.device).train()
    classifier.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer
    groups = stage.parameter_groups(classifier.learning_parts)
    classifier.start_stage(stage)
    optimizer = stage.optimizer(groups)
    if fused:
        fuse(optimizer, bench.device.type)
    hold_frozen(classifier._blocks, torch.bfloat16 if mixed else None)
    targets = bench.targets(batch, len(labels))
    data = {
        "pixel_values": bench.randn(batch, 3, bench.side, bench.side),
        "labels": targets,
        "image_id": [str(i) for i in range(batch)],
        ROWS: StepRows(targets.cpu(), stage),  # counted before a batch goes to the device
    }

    def step() -> None:
        with bench.mixed(mixed):
            loss = classifier.training_step(data, 0)
        assert loss is not None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _check_compiler(bench: Bench, compiled: bool) -> None:
    if compiled and bench.sizes.toy:
        raise LeftOutError("compiling takes longer than all else at this size")


def stage_2(bench: Bench) -> Iterator[Case]:
    """Label embeddings through the text tower, forward and backward, and the tokenizer before it."""
    seen, large = bench.sizes.seen, bench.sizes.large
    as_it_is, some, one = bench.sizes.text_batches[0], bench.sizes.text_batches[-2], bench.sizes.text_batches[-1]
    expected = {
        (seen, as_it_is): "30 ms, 4,100 launches",
        (seen, one): "8-10 ms, 1,050 launches",
        (large, as_it_is): "180-260 ms, 30,000 launches, 88 waits; kernels under 30 %",
        (large, some): "45-60 ms, 2,100 launches",
        (large, one): "50-65 ms, 1,050 launches; 14-17 GB",
    }
    for (labels, texts), figure in expected.items():
        step = partial(_label_step, bench, labels, texts, True)
        yield Case(f"{labels:,} labels, {texts:,} a batch, bf16-mixed", figure, step, {"labels/s": labels})
    step = partial(_label_step, bench, large, one, False)
    yield Case(f"{large:,} labels, {one:,} a batch, 32-true", "23-25 GB", step, {"labels/s": large})
    for texts in (as_it_is, one):
        step = partial(_label_step, bench, large, texts, True, True)
        yield Case(f"{large:,} labels, {texts:,} a batch, bf16-mixed, compiled", "-", step, {"labels/s": large})
    for labels, figure in ((min(500, seen), "131-176 ms"), (large, "2.5 s")):
        yield Case(f"tokenizing {labels:,} names", figure, partial(_tokenize, bench, labels))


def _label_step(bench: Bench, labels: int, texts: int, mixed: bool, compiled: bool = False) -> Run:
    _check_compiler(bench, compiled)
    torch.set_float32_matmul_precision("high")
    model, names = bench.model(compile=compiled), tuple(label_names(labels))
    encoder = model.prompt.text_encoder
    if not hasattr(encoder, "batch_size"):
        raise LeftOutError("the text tower chooses the size of its batches")
    encoder.batch_size = texts

    def step() -> None:
        with bench.mixed(mixed):
            embeds = model.prompt(names)
        embeds.float().square().mean().backward()

    return step


def _tokenize(bench: Bench, labels: int) -> Run:
    encoder, names = bench.model().prompt.text_encoder, label_names(labels)

    def run() -> dict[str, float]:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            encoder.tokenize(names)
            times.append(time.perf_counter() - start)
        return {"ms": statistics.median(times) * 1000}

    return run
