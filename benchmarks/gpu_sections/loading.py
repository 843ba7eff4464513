"""G: images from disk to the device."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from gpu_sections.base import Bench, Case, Run, check_installed, jpegs, label_names

PER_CORE = "170-260 images/s a core; a step of stage 1 takes 4,000-7,000"


def loading(bench: Bench) -> Iterator[Case]:
    """The data module's loaders, with and without the way to the device; and that way alone."""
    batch, paths = bench.sizes.batches[0], jpegs(bench, tempfile.mkdtemp())
    expected = dict(zip(bench.sizes.workers, ("1,400-2,100 images/s", "2,700-4,200 images/s"), strict=True))
    for workers, figure in expected.items():
        for split, transfer in (("train", False), ("train", True), ("validation", False)):
            name = f"{split} loader, {workers} workers{', to the device' if transfer else ''}"
            run = partial(_loader, bench, paths, split, workers, transfer)
            yield Case(name, f"{figure}; {PER_CORE}" if not transfer else figure, run)
    for dtype, figure in ((torch.float32, "0.75-1.5 ms of 38.5 MB"), (torch.uint8, "0.2-0.4 ms of 9.6 MB")):
        yield Case(f"{batch} images to the device, {dtype}".replace("torch.", ""), figure, _way(bench, dtype))


def _loader(bench: Bench, paths: list[str], split: str, workers: int, transfer: bool) -> Run:
    check_installed("datasets")
    from ovml.data import MultiLabelDataModule, RandAugment
    from ovml.encoders.image_processor import ImageProcessor
    from ovml.vocabulary import LabelVocabulary

    class Files(MultiLabelDataModule):
        """JPEGs of 500 x 375 pixels; their labels are at random."""

        image_processor = ImageProcessor(bench.side)  # type: ignore[assignment]
        vocabulary = LabelVocabulary(tuple(label_names(bench.sizes.seen)))  # type: ignore[assignment]

        def dataset(self, split: Any) -> Any:
            """The same images in each split."""
            return [{"image": path, "positive": [i % bench.sizes.seen]} for i, path in enumerate(paths)]

    def run() -> dict[str, float]:
        batch = bench.sizes.batches[0]
        data = Files("ovml-demo", batch, num_workers=workers, rand_augment=RandAugment())
        loader = data.train_dataloader() if split == "train" else data.val_dataloader()
        images, start, first = 0, time.perf_counter(), 0.0
        for _ in range(bench.sizes.loader_epochs):
            for found in loader:
                pixels = found["pixel_values"]
                if transfer:
                    pixels.to(bench.device, non_blocking=True)
                if not first:  # the workers have started, and each has read about a batch
                    first = time.perf_counter() - start
                images += len(pixels)
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        return {"images/s": images / (time.perf_counter() - start), "s until the first batch": first}

    return run


def _way(bench: Bench, dtype: torch.dtype) -> Any:
    def prepare() -> Run:
        shape = bench.sizes.batches[0], 3, bench.side, bench.side
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(dtype)
        pixels = pixels.pin_memory() if bench.device.type == "cuda" else pixels
        return lambda: pixels.to(bench.device, non_blocking=True, copy=True)

    return prepare
