"""The paper's ablations and the family of parts on the drawn worlds, over seeds: tables and pictures.

Usage: `PYTHONPATH=benchmarks python -m worlds.ablation [--worlds embedded emoji] [--seeds 0 1 2] [--groups ...]
[--jobs 2] [--quick]`

Each variant (`ablation_variants.py`) is `ovml fit` with a world's configuration and other options, then `ovml test`,
once for each seed; all variants of a seed come before the next seed. Runs that are done are not done again and a
broken one goes on, so it can be interrupted; `--only-done` writes what there is. `--jobs 2` runs two at once, each on
its share of the cores: on two cores that is 1.4 times as fast. Processors without instructions for bfloat16 train in
float32, which takes two to three times as long.

The tables, in docs/ablation.md, have the test split's metrics after the last stage, mean ± sample standard deviation,
and the validation split's mAP, by which the best is chosen; the picture stands beside them. Each run's metrics go into
`ablation_runs.json`. With `--missing` only runs that it lacks are made, on whatever machine, and the tables are of all;
a row whose runs are not recorded stays as it is, and the picture with it.

The emoji world needs CLIPs of its own, one for each seed, so that seeds tell what hangs on the CLIP too
(`--emoji-clip`, made by `python -m worlds.emoji.pretrain_clip --num-names 300 --seed SEED --out emoji-clip-SEED`). Its
table has the differences to MKT with the same seed. With `--style FOLDER`, pictures of another drawing style, each of
its runs is tested on scenes in that style too.

`--quick` trains on 1,000 scenes, an epoch a stage: for a first look, and never into the docs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machine, markdown, put_table, table_cells
from demo import ovml, run, run_folder, spread

from ovml.training.precision import multiplies_bfloat16
from ovml.utils.files import write_text
from worlds.ablation_variants import GROUPS

RECORD = Path(__file__).with_name("ablation_runs.json")
DOCS = Path(__file__).parents[2] / "docs"
FLOAT32 = ["--trainer.precision", "32-true", "--model.attn_implementation", "sdpa"]
QUICK = ["--data.train_size", "1000", "--trainer.max_epochs", "1"]
METRICS = {"zsl/mAP": "ZSL mAP", "zsl/F1@3": "ZSL F1@3", "gzsl/mAP": "GZSL mAP", "gzsl/F1@3": "GZSL F1@3"}
VALIDATION = {"validation/zsl/mAP": "val. ZSL mAP", "validation/gzsl/mAP": "val. GZSL mAP"}
OVER_MKT = {"zsl/mAP": "ZSL mAP over MKT's", "gzsl/mAP": "GZSL mAP over MKT's"}

Runs = dict[str, dict[str, float]]
"""Metrics in percent by seed."""


@dataclass
class World:
    """A data set of the comparison.

    Attributes:
        name: `embedded` or `emoji`.
        configs: Its configuration files, later ones over earlier ones.
        columns: Metrics of its table, with their titles.
        clip: Its CLIP, `{seed}` where each seed has one; of the configuration if it is empty.
        style: Folder of pictures in another style, in which runs are tested too.
    """

    name: str
    configs: list[str]
    columns: dict[str, str]
    clip: str = ""
    style: Path | None = None

    def options(self, seed: int) -> list[str]:
        """Options that all runs of a seed have."""
        return ["--model.clip", self.clip.replace("{seed}", str(seed))] if self.clip else []

    @property
    def clip_a_seed(self) -> bool:
        """Whether each seed has a CLIP of its own."""
        return "{seed}" in self.clip

    def variants(self, groups: list[str]) -> dict[str, list[str]]:
        """Options by name; MKT first."""
        return {name: options for group in groups for name, options in GROUPS[group].items()}


def measure(world: World, root: Path, variant: str, seed: int, options: list[str], threads: int) -> None:
    """Fit and test a variant, if it is not done."""
    folder = run_folder(root, variant, seed) / "version_0"
    own, styled, kept = (folder / f"test_results{name}.json" for name in ("", ".style", ".kept"))
    if kept.is_file():  # a test in the other style was interrupted
        kept.replace(own)
    run(root, variant, seed, world.options(seed) + options, world.configs, threads)
    if world.style is not None and not styled.is_file():
        shutil.copyfile(own, kept)
        ovml(["test", "--ckpt_path", str(folder), "--data.test_pictures", str(world.style)], threads)
        own.replace(styled)
        kept.replace(own)


def results(world: World, root: Path, variant: str, seeds: list[int]) -> dict[str, Runs]:
    """Metrics in percent of a variant's finished runs by stage, the last stage as `last`."""
    found: dict[str, Runs] = {}
    for seed in seeds:
        folder = run_folder(root, variant, seed) / "version_0"
        styled = folder / "test_results.style.json"
        if not (folder / "test_results.json").is_file() or (world.style is not None and not styled.is_file()):
            continue  # a run without its test in the other style is not finished
        rows: dict[str, dict[str, float]] = json.loads((folder / "test_results.json").read_text())
        validation = json.loads((folder / "results.json").read_text())
        other = json.loads(styled.read_text()) if styled.is_file() else {}
        for name, metrics in rows.items():
            values = {**metrics}
            for split, measured in (("validation", validation), ("style", other)):
                values |= {f"{split}/{metric}": value for metric, value in measured.get(name, {}).items()}
            percent = {metric: round(100 * value, 3) for metric, value in values.items()}
            found.setdefault(name, {})[str(seed)] = percent
            if name == list(rows)[-1]:
                found.setdefault("last", {})[str(seed)] = percent
    return found


def table_rows(world: World, root: Path, groups: list[str], seeds: list[int]) -> dict[str, Runs]:
    """What the table shows: zero-shot CLIP, MKT after each stage, every other variant."""
    rows: dict[str, Runs] = {}
    for variant in world.variants(groups):
        found = results(world, root, variant, seeds)
        for seed, run_metrics in found.get("zero-shot", {}).items():
            zero_shot = rows.setdefault("zero-shot CLIP", {})
            if world.clip_a_seed or not zero_shot:  # all runs of a CLIP begin alike
                zero_shot.setdefault(seed, run_metrics)
        if found:
            rows[variant] = found["last"]
        if variant == "MKT" and found:
            rows["MKT, no prompt tuning"] = found["vision"]
    return {
        name: {s: {m: r[m] for m in world.columns if m in r} for s, r in runs.items()} for name, runs in rows.items()
    }


def order(world: World) -> list[str]:
    """All rows that its table may have."""
    return list(dict.fromkeys(["zero-shot CLIP", "MKT", "MKT, no prompt tuning", *world.variants(list(GROUPS))]))


def recorded() -> dict[str, dict[str, Runs]]:
    """The rows that the record has, by world."""
    found: dict[str, dict[str, Runs]] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    return found


def together(world: World, rows: dict[str, Runs]) -> dict[str, Runs]:
    """The record's rows and new ones, in the order of the variants.

    Raises:
        SystemExit: Those of a seed are of different CLIPs.
    """
    before, same = recorded().get(world.name, {}), "zero-shot CLIP"
    for seed, new in rows.get(same, {}).items():
        old = before.get(same, {}).get(seed, {})
        if any(abs(new[metric] - value) > 0.06 for metric, value in old.items() if metric in new):
            raise SystemExit(
                f"{RECORD}: its runs of {world.name}, seed {seed}, are of another CLIP: {old} where this one has {new}"
            )
    return {n: {**before.get(n, {}), **rows.get(n, {})} for n in order(world) if n in before or n in rows}


def table(world: World, rows: dict[str, Runs], others: dict[str, list[str]]) -> str:
    """Markdown, with the machine below; `others` are the cells of rows that stay as the page has them."""
    columns = {m: title for m, title in world.columns.items() if any(m in r for x in rows.values() for r in x.values())}
    cells = {
        variant: [
            variant,
            str(len(runs)),
            *(spread([r[m] for r in runs.values() if m in r]) for m in columns),
            *(spread(gains(runs, rows.get("MKT", {}), m), "+") for m in OVER_MKT if world.clip_a_seed),
        ]
        for variant, runs in rows.items()
    }
    ordered = [cells.get(variant, others.get(variant)) for variant in order(world)]
    titles = [*columns.values(), *(title for title in OVER_MKT.values() if world.clip_a_seed)]
    lines = markdown(["variant", "runs", *titles], [row for row in ordered if row])
    return f"{lines}\n\n{machine('lightning', 'transformers')}"


def gains(runs: Runs, reference: Runs, metric: str) -> list[float]:
    """What a variant has more than another with the same seed."""
    return [run[metric] - reference[seed][metric] for seed, run in runs.items() if seed in reference]


def draw(rows: dict[str, Runs], path: Path) -> None:
    """ZSL and GZSL mAP of every variant: a dot a seed, the mean as a bar, MKT as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.27 * len(rows) + 1.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2, sharey=True), ("zsl/mAP", "gzsl/mAP"), strict=True):
        for place, (variant, runs) in enumerate(rows.items()):
            values = [r[metric] for r in runs.values()]
            axes.barh(place, statistics.mean(values), color="#cfd8dc" if variant == "zero-shot CLIP" else "#9db4c0")
            axes.plot(values, [place] * len(values), ".", color="#253237")
        axes.axvline(statistics.mean([r[metric] for r in rows["MKT"].values()]), color="#c2410c", linewidth=1)
        axes.set(yticks=range(len(rows)), yticklabels=rows, xlabel=f"{METRICS[metric]} (%)")
    figure.axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def worlds(args: argparse.Namespace) -> list[World]:
    here = Path(__file__).parent
    text = {"text/mAP": "text labels mAP", "new_words/mAP": "new words mAP"}
    style = {"style/zsl/mAP": "other style, ZSL mAP", "style/gzsl/mAP": "other style, GZSL mAP"}
    found = [
        World("embedded", ["demo.yaml", str(here / "ablation_embedded.yaml")], {**METRICS, **text, **VALIDATION}),
        World(
            "emoji",
            [str(here / "emoji.yaml"), str(here / "ablation_emoji.yaml")],
            {**METRICS, **style, **VALIDATION},
            args.emoji_clip,
            args.style,
        ),
    ]
    return [world for world in found if world.name in args.worlds]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", nargs="+", default=["embedded", "emoji"], choices=["embedded", "emoji"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="of the groups, run these alone")
    parser.add_argument("--root", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--emoji-clip", default="emoji-clip-{seed}", help="the emoji world's CLIPs")
    parser.add_argument("--style", type=Path, help="pictures for emoji scenes in another style")
    parser.add_argument("--quick", action="store_true", help="1,000 scenes, an epoch a stage; never into the docs")
    parser.add_argument("--only-done", action="store_true", help="start no run")
    parser.add_argument("--missing", action="store_true", help=f"go on with {RECORD.name}: run what it lacks")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/ as it is")
    args = parser.parse_args()
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    precision = [] if multiplies_bfloat16() else FLOAT32
    for world in worlds(args):
        root = args.root / ("quick" if args.quick else "") / world.name
        page, command = DOCS / "ablation.md", f"python -m worlds.ablation --worlds {world.name}"
        before = recorded().get(world.name, {}) if args.missing else {}
        others = {n: row for n, row in table_cells(page, command).items() if args.missing and n not in before}
        todo: list[tuple[Any, ...]] = [
            (world, root, variant, seed, precision + options + QUICK * args.quick, threads)
            for seed in args.seeds
            for variant, options in world.variants(args.groups).items()
            if variant in (args.variants or [variant]) and str(seed) not in before.get(variant, {})
            if variant not in others or int(others[variant][1]) < len(args.seeds)
        ]

        def found(world: World = world, root: Path = root) -> dict[str, Runs]:
            rows = table_rows(world, root, args.groups, args.seeds)
            return together(world, rows) if args.missing else rows

        if not args.only_done:
            with ThreadPoolExecutor(args.jobs) as pool:
                for _ in pool.map(lambda one: measure(*one), todo):
                    found()  # another CLIP ends it now, not after all runs
        rows = found()
        if not rows:
            continue
        others = {variant: row for variant, row in others.items() if variant not in rows}
        text = table(world, rows, others)
        print(f"{world.name}\n\n{text}\n", flush=True)
        if not (args.no_docs or args.quick):
            put_table(page, command, text)
            if not others:
                draw(rows, DOCS / "images" / f"ablation_{world.name}.png")
            write_text(RECORD, json.dumps({**recorded(), world.name: rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
