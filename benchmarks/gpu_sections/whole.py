"""I: Lightning and `ovml` as users run them, in a distributed world of one process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from gpu_sections.base import Bench, Case, LeftOutError, Run, check_installed, label_names

ROOT = Path(__file__).parents[2]


def whole(bench: Bench) -> Iterator[Case]:
    """A fit of both stages by the command, the trainer's loop over batches in memory, and the tests that need a GPU."""
    passes = "passes; 'No backend type associated with device type cpu' is a fault of ovml"
    yield Case("ovml fit, DDP of one process", passes, partial(_command, bench))
    batch = bench.sizes.batches[0]
    for bar, figure in ((False, f"as stage 1 of {batch} images in B, and 1-4 ms of the host"), (True, "1.5-4 ms more")):
        name = f"trainer, {batch} images in memory, bf16-mixed, DDP of one{', progress bar' if bar else ''}"
        yield Case(name, figure, partial(_trainer, bench, bar), {"images/s": batch})
    yield Case("pytest tests/encoders/test_precision.py -k '16-mixed or compiled'", "passes", partial(_tests, bench))


def _command(bench: Bench) -> Run:
    if bench.sizes.toy:
        raise LeftOutError("the tests run ovml fit")
    check_installed("datasets", "jsonargparse")
    return lambda: _ends_well(
        [
            *("-m", "ovml", "fit", "--config", "demo.yaml", "--data.train_size", "256", "--data.eval_size", "100"),
            *("--trainer.devices", "1", "--trainer.strategy", "ddp", "--trainer.max_epochs", "1"),
            *("--trainer.accelerator", "gpu" if bench.device.type == "cuda" else bench.device.type),
        ],
        "--trainer.default_root_dir",
    )


def _tests(bench: Bench) -> Run:
    if bench.device.type != "cuda":
        raise LeftOutError("they are skipped without a GPU")
    check_installed("pytest", "datasets", "jsonargparse")
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/encoders/test_precision.py"]
    return lambda: _ends_well([*tests, "-k", "16-mixed or compiled"], "--basetemp")


def _ends_well(arguments: list[str], place: str) -> dict[str, object]:
    """Run Python with a folder of its own; returns the seconds, or raises the last line of what it said."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, *arguments, place, str(Path(folder) / "here")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or done.stdout.strip()).splitlines()[-1])
        return {"s": time.perf_counter() - start}


def _trainer(bench: Bench, bar: bool) -> Run:
    check_installed("lightning")
    from lightning.pytorch import Callback, Trainer
    from torch.utils.data import DataLoader

    from ovml import LabelVocabulary, OVMultiLabelClassifier, VisionStage

    sizes, names = bench.sizes, tuple(label_names(bench.sizes.seen + bench.sizes.unseen))
    vocabulary = LabelVocabulary(names[: sizes.seen], names[sizes.seen :])
    options: dict[str, Any] = {"tokenizer": bench.tokenizer(), "stages": [VisionStage(epochs=1, warmup_epochs=0)]}
    classifier = OVMultiLabelClassifier(bench.clip(), vocabulary, **options)
    batch = {
        "pixel_values": torch.randn(sizes.batches[0], 3, bench.side, bench.side),
        "labels": bench.targets(sizes.batches[0], len(names)).cpu(),
        "image_id": [str(i) for i in range(sizes.batches[0])],
    }
    loader: DataLoader[Any] = DataLoader([batch] * sizes.steps, batch_size=None)  # type: ignore[arg-type]
    few: DataLoader[Any] = DataLoader([batch] * 2, batch_size=None)  # type: ignore[arg-type]

    class Clock(Callback):
        """Times of the ends of training steps."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.ends.append(time.perf_counter())

    def run() -> dict[str, float]:
        clock = Clock()
        accelerator = "gpu" if bench.device.type == "cuda" else bench.device.type
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            strategy="ddp",
            precision="bf16-mixed",
            max_epochs=1,
            num_sanity_val_steps=0,
            enable_progress_bar=bar,
            callbacks=[clock],
            **quiet,
        )
        trainer.fit(classifier, loader, few)  # the validation at its end exchanges the metrics
        settled = clock.ends[len(clock.ends) // 6 :]
        return {"ms": statistics.mean(b - a for a, b in pairwise(settled)) * 1000}

    return run
