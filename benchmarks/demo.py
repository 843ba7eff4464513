"""MKT and its ablations on the embedded world: fit, then test, over seeds; mean and spread as a table.

Usage: `python benchmarks/demo.py [--seeds 0 1 2] [--variants mkt ...] [--root runs/benchmark] [--json FILE]`

Each run is `ovml fit --config demo.yaml` with the variant's options, or with `best.yaml`, then `ovml test`. Runs that
are done are not done again, and a broken one goes on, so the command can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Options beside those of demo.yaml. Rows of the table: the stages of `mkt`; of the others what changes.
VARIANTS = {
    "mkt": [],
    "no distillation": ["--model.distillation_weight", "0"],
    "distillation weight 1": ["--model.distillation_weight", "1"],
    "global stream only": ["--model.head", "ovml.heads.GlobalHead"],
    "local stream only": ["--model.head", "ovml.heads.LocalHead", "--model.head.top_k", "3"],
    "temperature 0.03": ["--model.loss.temperature", "0.03"],
    "best.yaml": [],
}
COLUMNS = ("zsl/mAP", "zsl/P@3", "zsl/F1@3", "gzsl/mAP", "gzsl/P@3", "gzsl/F1@3")
TITLES = {"zero-shot": "zero-shot CLIP", "prompt": "stage 1 + 2"}


def run(
    root: Path,
    variant: str,
    seed: int,
    options: list[str],
    configs: Sequence[str] = ("demo.yaml",),
    threads: int | None = None,
) -> dict[str, Any]:
    """Test metrics, wall-clock and CPU seconds of one run."""
    folder = run_folder(root, variant, seed)
    results, timing = folder / "version_0" / "test_results.json", folder / "seconds.json"
    if not results.is_file():
        fit = ["fit", *(option for config in configs for option in ("--config", config))]
        fit += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)]
        begun = (folder / "version_0" / "config.yaml").is_file()
        start, cpu = time.perf_counter(), cpu_seconds()
        ovml(fit + options + (["--ckpt_path", "last"] if begun else []), threads)
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - cpu}
        timing.write_text(json.dumps({} if begun else spent))
        ovml(["test", "--ckpt_path", str(folder / "version_0")], threads)
    spent = json.loads(timing.read_text()) if timing.is_file() else {}
    return {"rows": json.loads(results.read_text()), "seconds": None, **spent}


def cpu_seconds() -> float:
    """CPU seconds of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def configs(variant: str) -> list[str]:
    """A variant that is named as a recipe is that recipe."""
    return [variant if variant.endswith(".yaml") else "demo.yaml"]


def ovml(arguments: Sequence[str], threads: int | None = None) -> None:
    """Run the command, quiet; its error ends the benchmark."""
    environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
    command = [sys.executable, "-m", "ovml", "--quiet", *arguments]
    if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"this ended badly: ovml {shlex.join(arguments)}")


def run_folder(root: Path, variant: str, seed: int) -> Path:
    """Where the runs of a variant and seed are."""
    return root / variant.replace(" ", "-") / f"seed-{seed}"


def table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Markdown: mean ± sample standard deviation over seeds, in percent."""
    lines = ["| | " + " | ".join(c.replace("/", " ").replace("zsl", "ZSL").replace("gZSL", "GZSL") for c in COLUMNS)]
    lines[0] += " |"
    lines.append("|---|" + "---:|" * len(COLUMNS))
    for variant, results in runs.items():
        for row in results[0]["rows"]:
            if variant == "mkt" or row != "zero-shot":
                values = [[100 * result["rows"][row][column] for result in results] for column in COLUMNS]
                title = TITLES.get(row, "stage 1")
                title = title if variant == "mkt" else f"{title}, {variant}"
                lines.append(f"| {title} | " + " | ".join(map(spread, values)) + " |")
    return lines


def spread(values: list[float], sign: str = "") -> str:
    """Mean ± sample standard deviation; the mean alone where all are the same, nothing where there are none."""
    if not values:
        return ""
    mean = f"{round(statistics.mean(values), 1) + 0.0:{sign}.1f}"  # never -0.0
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--root", type=Path, default=Path("runs/benchmark"), help="folder of the runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    runs = {
        variant: [run(args.root, variant, seed, VARIANTS[variant], configs(variant)) for seed in args.seeds]
        for variant in args.variants
    }
    print("\n".join(table(runs)))
    timed = [result for results in runs.values() for result in results if result["seconds"]]
    for name, title in (("seconds", "wall-clock"), ("cpu_seconds", "CPU")):
        values = [result[name] for result in timed]
        if values:
            average = statistics.mean(values)
            print(f"fit, {title}: {average:.0f} s a run (mean; from {min(values):.0f} to {max(values):.0f})")
    if args.json:
        args.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
