"""Samples per second of `ovml fit --config demo.yaml`, the whole process, against a bare loop of the same steps.

Usage: `python benchmarks/fit_speed.py [--quick] [--against COMMIT] [--rounds 3] [--json FILE]`

- The whole process: from its start to its end without the first validation (zero-shot CLIP): imports, the embedded
  data set read from its cache (drawn before), augmentation, both stages, validation and a checkpoint after each epoch.
- The bare loop: the same model, loss, optimizer and batches, and the towers over the same validation images after each
  epoch; no Lightning, no logs, no metrics, all batches augmented and in memory before the clock starts. Aim: 0.85 of
  its samples per second.
- With `--against`, an older state of ovml from git beside them, the same command as for this one.

A sample is an image that a training step saw. The sides take turns; of each the median round counts. The ratio of
processor times hardly depends on what else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import in_fresh_process, machine, markdown

ROOT = Path(__file__).parents[1]
AIM = 0.85
QUICK = ["--data.train_size", "1024", "--data.eval_size", "200", "--trainer.max_epochs", "2"]


def fit(source: Path, work: Path, options: list[str]) -> dict[str, float]:
    """Seconds of one fit with the ovml in `source`, without its first validation."""
    environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work)}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        found = Path(folder) / "validation.json"
        run = ["fit", "--config", "demo.yaml", *options]
        run += ["--trainer.default_root_dir", folder, "--trainer.enable_progress_bar", "false"]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, __file__, "--fit", str(found), *run]
        subprocess.run(command, check=True, env=environment, cwd=work, capture_output=True)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        first = json.loads(found.read_text())
    return {"seconds": seconds - first["seconds"], "processor": used - first["processor"]}


def run_timed(found: str, arguments: list[str]) -> None:
    """Run `ovml`, and write what its first validation took to a file."""
    from lightning.pytorch import Trainer

    validate, times = Trainer.validate, []

    def timed(*args: Any, **options: Any) -> Any:
        start, used = time.perf_counter(), time.process_time()
        result = validate(*args, **options)
        times.append({"seconds": time.perf_counter() - start, "processor": time.process_time() - used})
        return result

    Trainer.validate = timed  # type: ignore[method-assign]
    sys.argv = ["ovml", *arguments]
    try:
        runpy.run_module("ovml", run_name="__main__")
    finally:
        Path(found).write_text(json.dumps(times[0]))


def bare_loop(quick: bool) -> dict[str, float]:
    """Seconds of the steps and the validation passes alone, and the number of samples."""
    import torch

    from ovml import OVMultiLabelClassifier, PromptStage, VisionStage
    from ovml.data import DemoDataModule
    from ovml.heads import TwoStreamHead
    from ovml.prompts import ContextPrompt
    from ovml.training.objective import batch_features

    # As demo.yaml has it.
    train_size, eval_size, epochs = (1024, 200, [2, 2]) if quick else (3000, 1000, [8, 2])
    data = DemoDataModule(train_size, eval_size, batch_size=64, eval_batch_size=250, crop_scale=(0.5, 1.0))
    stages = [VisionStage(epochs=8, warmup_epochs=1, num_layers=4), PromptStage(epochs=2)]
    head, prompt = TwoStreamHead(top_k=3), ContextPrompt("There is a {} in the scene")
    model = OVMultiLabelClassifier("ovml-demo", data.vocabulary, head, prompt, stages=stages, distillation_weight=0.1)
    evaluation, batches = list(data.val_dataloader()), []
    loader: Any = data.train_dataloader()
    for epoch in range(max(epochs)):
        loader.sampler.set_epoch(epoch)
        batches.append(list(loader))
    samples = 0
    start, used = time.perf_counter(), time.process_time()
    for stage, number in zip(model.stages, epochs, strict=True):
        model.start_stage(stage)
        optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
        for epoch in range(number):
            for batch in batches[epoch]:
                found = model.objective(model.model, model.teacher, batch, stage)
                samples += len(batch["labels"])
                if found is not None:
                    found.total.backward()
                    optimizer.step()
                    optimizer.zero_grad()
            with torch.no_grad():
                for batch in evaluation:
                    model.model.score(batch_features(model.model, batch), model.model.embed_labels())
    return {
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - used,
        "samples": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,024 images and 2 epochs a stage; starting counts more")
    parser.add_argument("--against", metavar="COMMIT", help="an older state of ovml, such as 3b6b3d9")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(json.dumps(bare_loop(options.quick)))
        return
    sizes, flags = (QUICK, ["--quick"]) if options.quick else ([], [])
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        sources = {"ovml fit, the whole process": ROOT / "src"}
        if options.against:
            archive = subprocess.run(
                ["git", "-C", str(ROOT), "archive", options.against, "src"], check=True, capture_output=True
            )
            subprocess.run(["tar", "-x", "-C", str(work)], input=archive.stdout, check=True)
            sources[f"the same of {options.against}"] = work / "src"
        os.environ["HF_DATASETS_CACHE"] = str(work)
        for source in sources.values():  # draws the data set, each in its own way
            fit(source, work, [*sizes, "--trainer.fast_dev_run", "1"])
        rounds: dict[str, list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            for side, source in sources.items():
                rounds.setdefault(side, []).append(fit(source, work, sizes))
            rounds.setdefault("bare loop", []).append(in_fresh_process(__file__, "--bare", *flags))
    samples = rounds["bare loop"][0]["samples"]
    rates = {
        side: [samples / statistics.median(one[kind] for one in found) for kind in ("seconds", "processor")]
        for side, found in rounds.items()
    }
    wall, processor = rates["bare loop"]
    rows = [[s, f"{a:,.0f}", f"{a / wall:.2f}", f"{b:,.0f}", f"{b / processor:.2f}"] for s, (a, b) in rates.items()]
    print(markdown([f"{samples:,.0f} samples", "samples/s", "ratio", "samples/s of processor time", "ratio"], rows))
    print(f"\naim of the ratio: {AIM}\n{machine('lightning', 'transformers')}")
    if options.json:
        options.json.write_text(json.dumps({"rates": rates, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fit"]:
        run_timed(sys.argv[2], sys.argv[3:])
    else:
        main()
