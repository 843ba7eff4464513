"""The paper's ablations and the family of parts, on the embedded world, over seeds: a table and a picture.

Usage: `python benchmarks/ablation.py [--seeds 0 1 2] [--groups ...] [--root runs/ablation] [--quick] [--no-docs]`

Each variant is `ovml fit --config demo.yaml` with other options, then `ovml test`, once for each seed. Runs that are
done are not done again and a broken one goes on, so it can be interrupted; `--only-done` writes what there is.
The table has the test split's metrics of the last stage, mean ± sample standard deviation, and the validation
split's ZSL mAP, by which the best is chosen. It is written into docs/ablation.md, the picture beside it.

`--quick` trains on 1,000 scenes, 4 and 3 epochs: for a first look, and never into the docs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from common import machine, markdown
from demo import run, spread

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- table: python benchmarks/ablation.py -->", "<!-- end of table -->"
COLUMNS = ("zsl/mAP", "zsl/F1@3", "gzsl/mAP", "gzsl/F1@3")
QUICK = ["--data.train_size", "1000", "--trainer.max_epochs", "4"]


def part(kind: str, name: str, **arguments: Any) -> list[str]:
    """Options that put another part in the place of the configuration's."""
    options = [f"--model.{kind}", name]
    for argument, value in arguments.items():
        options += [f"--model.{kind}.{argument}", str(value).lower() if isinstance(value, bool) else str(value)]
    return options


GROUPS: dict[str, dict[str, list[str]]] = {
    "paper": {
        "MKT": [],
        "no distillation": ["--model.distillation_weight", "0"],
        "distillation weight 1": ["--model.distillation_weight", "1"],
        "global stream only": part("head", "ovml.heads.GlobalHead"),
        "local stream only": part("head", "ovml.heads.LocalHead", top_k=3),
        "top-k 1": ["--model.head.top_k", "1"],
        "top-k 9": ["--model.head.top_k", "9"],
        "top-k 18": ["--model.head.top_k", "18"],
        "template 'a photo of a {}'": ["--model.prompt.template", "a photo of a {}"],
    },
    "heads": {
        "SpatialSoftmaxHead, with global": part("head", "ovml.heads.SpatialSoftmaxHead", scale=20, global_weight=0.5),
        "QueryHead, ranking": part("head", "ovml.heads.QueryHead", global_weight=0.5),
        "QueryHead, ZLPR": part("head", "ovml.heads.QueryHead", global_weight=0.5)
        + part("loss", "ovml.losses.ZLPRLoss", scale=20, offset=-4, learned=True),
        "OptimalTransportHead, multi-matching": part("head", "ovml.heads.OptimalTransportHead", local_temperature=2e-3)
        + part("loss", "ovml.losses.MultiMatchingLoss"),
        "OptimalTransportHead, no knowledge": part(
            "head", "ovml.heads.OptimalTransportHead", local_temperature=2e-3, knowledge=0
        )
        + part("loss", "ovml.losses.MultiMatchingLoss"),
    },
    "losses": {
        "ranking, temperature 0.1": ["--model.loss.temperature", "0.1"],
        "ranking, temperature 0.03": ["--model.loss.temperature", "0.03"],
        "ranking, learned margin": part("loss", "ovml.losses.LearnedMarginRankingLoss"),
        "ranking, spread margin": part("loss", "ovml.losses.SpreadMarginRankingLoss"),
        "binary cross-entropy": part("loss", "ovml.losses.BinaryCrossEntropy", scale=20, offset=-4, learned=True),
        "asymmetric": part("loss", "ovml.losses.AsymmetricLoss", scale=20, offset=-4, learned=True),
        "ZLPR": part("loss", "ovml.losses.ZLPRLoss", scale=20, offset=-4, learned=True),
        "multi-matching": part("loss", "ovml.losses.MultiMatchingLoss", scale=20, learned=True),
    },
    "prompts": {
        "CoOpPrompt": part("prompt", "ovml.prompts.CoOpPrompt"),
        "DualPrompt": part("prompt", "ovml.prompts.DualPrompt"),
        "EnsemblePrompt": part("prompt", "ovml.prompts.EnsemblePrompt"),
    },
    "distillation": {
        "cosine": part("distillation", "ovml.distillation.CosineDistillation"),
        "relational": part("distillation", "ovml.distillation.RelationalDistillation"),
        "patches": part("distillation", "ovml.distillation.PatchDistillation"),
    },
}


def measured(root: Path, variant: str, options: list[str], seeds: list[int], only_done: bool) -> list[dict[str, Any]]:
    """Test rows and validation results of a variant's runs."""
    found = []
    for seed in seeds:
        folder = root / variant.replace(" ", "-") / f"seed-{seed}" / "version_0"
        if only_done and not (folder / "test_results.json").is_file():
            continue
        rows = run(root, variant, seed, options)["rows"]
        last = [row for row in rows if row != "zero-shot"][-1]
        validation = json.loads((folder / "results.json").read_text())[last]["zsl/mAP"]
        found.append({**{column: 100 * rows[last][column] for column in COLUMNS}, "validation": 100 * validation})
    return found


def draw(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """ZSL and GZSL mAP of every variant, a dot a seed, the mean as a bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.32 * len(results) + 1.2), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2, sharey=True), ("zsl/mAP", "gzsl/mAP"), strict=True):
        for place, runs in enumerate(results.values()):
            values = [r[column] for r in runs]
            axes.barh(place, statistics.mean(values), color="#9db4c0")
            axes.plot(values, [place] * len(values), ".", color="#253237")
        axes.set(yticks=range(len(results)), yticklabels=results, xlabel=f"{column.split('/')[0].upper()} mAP (%)")
        axes.axvline(statistics.mean([r[column] for r in next(iter(results.values()))]), color="#c2410c", linewidth=1)
    figure.axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--root", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--quick", action="store_true", help="1,000 scenes, few epochs; never into the docs")
    parser.add_argument("--only-done", action="store_true", help="start no run")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/ as it is")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    root = args.root / "quick" if args.quick else args.root
    results = {}
    for group in args.groups:
        for variant, options in GROUPS[group].items():
            options = options + QUICK if args.quick else options
            if runs := measured(root, variant, options, args.seeds, args.only_done):
                results[variant] = runs
                print(variant, {c: spread([r[c] for r in runs]) for c in COLUMNS}, flush=True)
    cells = [
        [variant, str(len(runs)), *(spread([r[c] for r in runs]) for c in (*COLUMNS, "validation"))]
        for variant, runs in results.items()
    ]
    header = ["variant", "runs", "ZSL mAP", "ZSL F1@3", "GZSL mAP", "GZSL F1@3", "validation ZSL mAP"]
    text = f"{markdown(header, cells)}\n\n{machine('lightning', 'transformers')}"
    print(text)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if not (args.no_docs or args.quick):
        file = DOCS / "ablation.md"
        page = file.read_text() if file.is_file() else f"# Ablations\n\n{BEGIN}{END}\n"
        file.write_text(f"{page.split(BEGIN)[0]}{BEGIN}\n\n{text}\n\n{END}{page.split(END)[1]}")
        draw(results, DOCS / "images" / "ablation.png")


if __name__ == "__main__":
    main()
