"""A few labelled images of each label: `ovml fit --config few.yaml` on drawn scenes in a folder, then `ovml test`.

Usage: `python benchmarks/few_shot.py [--shots 1 4 16] [--seeds 0 1 2] [--root runs/few-shot]`

Prints test metrics in percent, mean and standard deviation over seeds, and the CPU seconds of `fit`, evaluation and
start included. The images of a number of shots are the same for all seeds. Runs that are done are not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ovml.data.synthetic.scenes import LABELS, UNSEEN_LABELS, draw_scene

SIZES = {"train": 2000, "test": 1000}
COLUMNS = ("zsl/mAP", "zsl/P@3", "gzsl/mAP", "gzsl/P@3")


def draw(root: Path) -> None:
    """Write scenes as a folder of images with `metadata.jsonl`, and the unseen labels."""
    for split, size in SIZES.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        with open(root / split / "metadata.jsonl", "w", encoding="utf-8") as file:
            for number in range(size):
                scene = draw_scene(0, split, number)
                scene.image.save(root / split / f"{number}.png")
                labels = [LABELS[label] for label in scene.label_ids]
                file.write(json.dumps({"file_name": f"{number}.png", "labels": labels}) + "\n")
    (root / "unseen.txt").write_text("\n".join(UNSEEN_LABELS))


def ovml(*arguments: str) -> float:
    """Run the command; returns its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "ovml", "--quiet", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(data: Path, shots: int, seed: int, root: Path) -> dict[str, dict[str, float]]:
    """Test metrics of one run, by row; `seconds` is a row too."""
    folder = root / f"shots-{shots}" / f"seed-{seed}"
    results = folder / "version_0" / "test_results.json"
    if not results.is_file():
        options = ["--data.root", str(data), "--data.unseen", str(data / "unseen.txt"), "--data.shots", str(shots)]
        options += ["--model.clip", "ovml-demo", "--data.num_workers", "0", "--seed_everything", str(seed)]
        seconds = ovml("fit", "--config", "few.yaml", *options, "--trainer.default_root_dir", str(folder))
        (folder / "version_0" / "seconds.json").write_text(json.dumps({"fit": seconds}))
        ovml("test", "--ckpt_path", str(folder / "version_0"))
    seconds_file = folder / "version_0" / "seconds.json"
    return {**json.loads(results.read_text()), "seconds": json.loads(seconds_file.read_text())}


def main(argv: Sequence[str] | None = None) -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/few-shot"))
    args = parser.parse_args(argv)
    data = args.root / "scenes"
    if not (data / "unseen.txt").is_file():
        draw(data)
    print("| images per label | " + " | ".join(COLUMNS) + " | CPU seconds of fit |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for shots in args.shots:
        runs = [run(data, shots, seed, args.root) for seed in args.seeds]
        if shots == args.shots[0]:
            print("| none: zero-shot | " + " | ".join(f"{100 * runs[0]['zero-shot'][c]:.1f}" for c in COLUMNS) + " | |")
        cells = []
        for column in COLUMNS:
            values = [100 * own["prompt"][column] for own in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        seconds = statistics.mean(own["seconds"]["fit"] for own in runs)
        print(f"| {shots} | " + " | ".join(cells) + f" | {seconds:.0f} |")


if __name__ == "__main__":
    main()
