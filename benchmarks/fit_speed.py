"""Samples per second of `ovml fit --config demo.yaml`, end to end, against an older state of ovml.

Usage: `python benchmarks/fit_speed.py [--against 3b6b3d9] [--rounds 3] [--json FILE]`

The older state is checked out of git beside this one. Both take turns, the same command with the same options, each a
process of its own from its start to its end: the embedded world drawn and cached before, both stages, validation after
each epoch, checkpoints written. A sample is an image that a training step saw; of each side the median round counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, markdown

ROOT = Path(__file__).parents[1]
SIZE, EPOCHS, STAGES = 2048, 2, 2
SHARED = f"--data.train_size {SIZE} --data.eval_size 200 --trainer.max_epochs {EPOCHS}".split()


def fit(source: Path, work: Path) -> float:
    """Seconds of one fit with the ovml in `source`."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(work / "data"),
    }
    command = [sys.executable, "-m", "ovml", "fit", "--config", "demo.yaml", *SHARED]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        start = time.perf_counter()
        options = ["--trainer.default_root_dir", folder, "--trainer.enable_progress_bar", "false"]
        subprocess.run([*command, *options], check=True, env=environment, cwd=work, capture_output=True)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", default="3b6b3d9", metavar="COMMIT", help="default: the first version that fits")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", options.against, "src"], check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", str(work)], input=archive.stdout, check=True)
        sides = {"this ovml": ROOT / "src", options.against: work / "src"}
        for source in sides.values():
            fit(source, work)  # draws the data set, each in its own way
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, source in sides.items():
                seconds[side].append(fit(source, work))
    rates = {side: SIZE * EPOCHS * STAGES / statistics.median(times) for side, times in seconds.items()}
    rows = [[side, f"{rate:,.0f}", f"{rate / rates[options.against]:.2f}x"] for side, rate in rates.items()]
    print(markdown(["ovml", "samples/s", "ratio"], rows), f"\n{machine('lightning', 'transformers')}", sep="\n")
    if options.json:
        options.json.write_text(json.dumps({"rates": rates, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
