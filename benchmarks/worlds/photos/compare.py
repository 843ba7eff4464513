"""MKT, its ablations and its successors on photographs: tables of docs/photographs.md.

    export PYTHONPATH=benchmarks:examples
    for seed in 0 1; do python -m worlds.photos.pretrain_clip --seed $seed --out photos-clip-$seed; done
    python -m worlds.photos.compare --jobs 2

Each variant (`variants.py`) is `ovml fit`, then `ovml test`, for each CLIP and seed; all variants of a CLIP and seed
come before the next. Training labels are the seen ones that captions name, and the test is on held-out photographs
(seen and withheld labels) and on COCO's photographs with COCO's names. Heads without training are tested once for each
CLIP; those that need a pool of unlabelled images get training photographs.

Runs that are done are not done again and a broken one goes on, so the command can be interrupted; `--only-done` writes
what there is. Metrics of each run go into `photos_runs.json`. `--plan` says what would be loaded and run, and ends.

With a CLIP and photographs of the Hub, and the papers' settings:

    python -m worlds.photos.compare --clip openai/clip-vit-base-patch16 --data jxie/flickr8k --jobs 1
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common import machine, markdown, put_table
from demo import ovml, run, run_folder, spread

from ovml.encoders.checkpoints import load_image_processor
from ovml.training.messages import quiet_libraries
from ovml.training.precision import multiplies_bfloat16
from ovml.utils.errors import UserError
from ovml.utils.files import write_text
from ovml.vocabulary import label_key, packaged_vocabulary
from worlds.ablation import gains
from worlds.photos.datamodule import CaptionDataModule
from worlds.photos.labels import label_list
from worlds.photos.photographs import SHARED, is_there
from worlds.photos.variants import PAPER, SMALL, Settings, training_free, variants

HERE = Path(__file__).parent
RECORD = HERE / "photos_runs.json"
PAGE = HERE.parents[2] / "docs" / "photographs.md"
COMMAND = "python -m worlds.photos.compare"
COCO = "../shared/photos/coco_photos.parquet"
HALF = ["--trainer.precision", "bf16-mixed", "--model.attn_implementation", "eager"]
QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
FLICKR = {"zsl/mAP": "ZSL mAP", "zsl/F1@3": "ZSL F1@3", "gzsl/mAP": "GZSL mAP", "gzsl/F1@3": "GZSL F1@3"}
OVER_MKT = {"zsl/mAP": "ZSL mAP over MKT's", "gzsl/mAP": "GZSL mAP over MKT's"}
VALIDATION = {"validation/zsl/mAP": "val. ZSL mAP"}
OF_COCO = {
    "coco/zsl/mAP": "17 unseen classes, mAP",
    "coco/coco65/mAP": "48 + 17 classes, mAP",
    "coco/gzsl/mAP": "all 80, mAP",
    "coco/coco_new/mAP": "names that no label has, mAP",
    "coco/gzsl/F1@3": "all 80, F1@3",
}
POOL = 1000
"""Training photographs of a pool without labels."""
PROMPTS = 500
"""Training captions that `PromptFusionHead` gets as prompts."""

Runs = dict[str, dict[str, float]]
"""Metrics in percent by CLIP and seed."""


@dataclass
class Comparison:
    """What is compared, and on what.

    Attributes:
        clips: Folders, or names on the Hub.
        data: Folder or name of the photographs.
        coco: File of COCO's photographs; `None` without them.
        root: Folder of the runs.
        settings: Of the CLIPs' size.
        seeds: Of the trainings.
        quick: Whether each stage ends after two batches: for tests.
    """

    clips: list[str]
    data: str
    coco: Path | None
    root: Path
    settings: Settings
    seeds: list[int]
    quick: bool = False

    @cached_property
    def variants(self) -> dict[str, list[str]]:
        """Options by name."""
        return variants(self.settings, len(label_list().seen))

    @property
    def configs(self) -> list[str]:
        """Paths of the configurations."""
        return [str(HERE / name) for name in self.settings.configs]

    def folder(self, clip: str) -> Path:
        """Of the runs of a CLIP."""
        return self.root / clip.strip("/").replace("/", "--")

    def options(self, clip: str) -> list[str]:
        """Options of all runs of a CLIP."""
        half = HALF if multiplies_bfloat16() and self.settings is SMALL else []
        return ["--model.clip", clip, "--data.path", self.data, *half, *QUICK * self.quick]

    def coco_data(self) -> dict[str, Any]:
        """Arguments of the data module of COCO's photographs: 63 classes, then the 17 unseen ones of the literature."""
        from ovml.data.divided.coco import UNSEEN

        names = packaged_vocabulary("coco").names
        return {
            "path": "parquet",
            "data_files": {"train": str(self.coco), "test": str(self.coco)},
            "id_column": "image_id",
            "labels": [name for name in names if name not in UNSEEN],
            "unseen": list(UNSEEN),
            "eval_batch_size": 250,
        }

    def coco_protocols(self) -> list[dict[str, Any]]:
        """The 65 classes of the literature, and the classes whose name is no label of the supervised training."""
        from ovml.data.divided.coco import UNUSED

        names = packaged_vocabulary("coco").names
        trained = set(map(label_key, label_list().seen))
        groups = {
            "coco65": [name for name in names if name not in UNUSED],
            "coco_new": [name for name in names if label_key(name) not in trained],
        }
        found = []
        for group, own in groups.items():
            path = self.root / f"{group}.txt"
            text = "\n".join(own) + "\n"
            if not path.is_file() or path.read_text() != text:
                write_text(path, text)
            found.append({"class_path": "ovml.metrics.NamedLabels", "init_args": {"path": str(path), "name": group}})
        return found

    def said(self) -> Iterator[str]:
        """What is loaded and run, a line each."""
        for clip in self.clips:
            source = "a folder here" if is_there(clip) else "from the Hub: weights, tokenizer, image processor"
            yield f"CLIP: {clip} ({source})"
        source = "a folder here" if is_there(self.data) else "from the Hub: train, validation and test, with captions"
        yield f"photographs: {self.data} ({source})"
        yield f"COCO: {self.coco} (355 photographs, test only)" if self.coco else "COCO: left out, no such file"
        labels = label_list()
        yield f"labels: {len(labels.seen)} seen, {len(labels.unseen)} withheld from training"
        size = f"{len(self.variants)} variants x {len(self.seeds)} seeds x {len(self.clips)} CLIPs"
        yield f"runs: {size} in {self.root}, with {', '.join(self.settings.configs)}"


def test_elsewhere(folder: Path, name: str, options: list[str], threads: int) -> None:
    """Test a run on other data, if it is not done: `test_results.NAME.json` beside `test_results.json`."""
    own, other, kept = (folder / f"test_results{suffix}.json" for suffix in ("", f".{name}", ".kept"))
    if kept.is_file():  # such a test was interrupted
        kept.replace(own)
    if other.is_file() or not own.is_file():
        return
    shutil.copyfile(own, kept)
    ovml(["test", "--ckpt_path", str(folder), *options], threads)
    own.replace(other)
    kept.replace(own)


def measure(plan: Comparison, clip: str, variant: str, seed: int, threads: int) -> None:
    """Fit and test a variant, if it is not done."""
    root = plan.folder(clip)
    folder = run_folder(root, variant, seed) / "version_0"
    coco: list[str] = []
    if plan.coco:
        coco = ["--data", "ovml.data.HubDataModule", "--model.protocols", json.dumps(plan.coco_protocols())]
        for name, value in plan.coco_data().items():
            coco += [f"--data.{name}", json.dumps(value) if isinstance(value, (dict, list)) else str(value)]
        test_elsewhere(folder, "coco", coco, threads)
    run(root, variant, seed, plan.options(clip) + plan.variants[variant], plan.configs, threads)
    if plan.coco:
        test_elsewhere(folder, "coco", coco, threads)


def measure_training_free(plan: Comparison, clip: str) -> None:
    """Test the heads without training that are not done; each has a file of its metrics."""
    folder = plan.folder(clip) / "training-free"
    flickr = CaptionDataModule(plan.data, clip=clip, eval_batch_size=250)
    found = label_list()
    named = {text: len(found.named(text)) for own in flickr.captions("train") for text in own}
    prompts = list(dict.fromkeys(text for text, count in named.items() if count > 1))[:PROMPTS]
    for name in training_free(prompts):
        file = folder / f"{name.replace(' ', '-')}.json"
        if file.is_file():
            continue
        metrics = evaluate(clip, *training_free(prompts)[name], flickr, flickr)
        if plan.coco:
            from ovml.data import HubDataModule

            coco = HubDataModule(**plan.coco_data(), clip=clip)
            head, source = training_free(prompts)[name]
            others = evaluate(clip, head, source, coco, flickr, plan.coco_protocols())
            metrics |= {f"coco/{metric}": value for metric, value in others.items()}
        write_text(file, json.dumps(metrics, indent=1))


def evaluate(
    clip: str, head: Any, source: Any, data: Any, pool: CaptionDataModule, protocols: list[dict[str, Any]] | None = None
) -> dict[str, float]:
    """Metrics of a head on a test split; it is fitted first where it needs a pool."""
    from lightning.pytorch import Trainer

    from ovml import OVMultiLabelClassifier
    from ovml.heads.pool import PoolFitted
    from ovml.inference.adapt import adapt
    from ovml.metrics import EvaluationProtocol, NamedLabels
    from ovml.prompts import TemplatePrompt
    from ovml.training.fit import split_metrics

    prompt = TemplatePrompt("There is a {} in the scene")
    named: list[EvaluationProtocol] = [NamedLabels(**protocol["init_args"]) for protocol in protocols or ()]
    model = OVMultiLabelClassifier(clip, data.vocabulary, head, prompt, stages=[], protocols=named, patch_source=source)
    if isinstance(model.model.head, PoolFitted):
        images = pool.dataset("train").select(range(min(POOL, len(pool.dataset("train")))))
        adapt(model.model, (row["image"] for row in images))
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.test(model, datamodule=data, verbose=False)
    return split_metrics(trainer, "test")


def results(folder: Path) -> dict[str, dict[str, float]]:
    """Metrics in percent of a run by stage, the last stage as `last`; none if it is not done."""
    files = {"": "test_results", "validation/": "results", "coco/": "test_results.coco"}
    found: dict[str, dict[str, float]] = {}
    if not (folder / "test_results.json").is_file():
        return {}
    for prefix, name in files.items():
        if (folder / f"{name}.json").is_file():
            for stage, metrics in json.loads((folder / f"{name}.json").read_text()).items():
                found.setdefault(stage, {}).update({f"{prefix}{metric}": value for metric, value in metrics.items()})
    rows = {stage: percent(metrics) for stage, metrics in found.items()}
    return {**rows, "last": rows[list(json.loads((folder / "test_results.json").read_text()))[-1]]}


def percent(metrics: dict[str, float]) -> dict[str, float]:
    """The table's metrics in percent."""
    columns = [*FLICKR, *VALIDATION, *OF_COCO]
    return {name: round(100 * metrics[name], 3) for name in columns if name in metrics}


def table_rows(plan: Comparison) -> dict[str, Runs]:
    """What the tables show: heads without training, MKT after each stage, every other variant."""
    rows: dict[str, Runs] = {"zero-shot CLIP": {}}
    for clip in plan.clips:
        for name in training_free(["one"]):
            file = plan.folder(clip) / "training-free" / f"{name.replace(' ', '-')}.json"
            if file.is_file():
                rows.setdefault(name, {})[clip] = percent(json.loads(file.read_text()))
    rows |= {"MKT": {}, "MKT, no prompt tuning": {}}
    for variant in plan.variants:
        for clip in plan.clips:
            for seed in plan.seeds:
                found = results(run_folder(plan.folder(clip), variant, seed) / "version_0")
                if not found:
                    continue
                rows["zero-shot CLIP"].setdefault(clip, found["zero-shot"])
                rows.setdefault(variant, {})[f"{clip}, seed {seed}"] = found["last"]
                if variant == "MKT":
                    rows["MKT, no prompt tuning"][f"{clip}, seed {seed}"] = found["vision"]
    return {name: runs for name, runs in rows.items() if runs}


def table(rows: dict[str, Runs], columns: dict[str, str], over: dict[str, str]) -> str:
    """Markdown: mean and sample standard deviation over CLIPs and seeds, and the gain over MKT of the same ones."""
    cells = [
        [
            name,
            str(len(runs)),
            *(spread([run[metric] for run in runs.values() if metric in run]) for metric in columns),
            *(spread(gains(paired(runs, rows.get("MKT", {})), rows.get("MKT", {}), metric), "+") for metric in over),
        ]
        for name, runs in rows.items()
    ]
    return markdown(["variant", "runs", *columns.values(), *over.values()], cells)


def paired(runs: Runs, reference: Runs) -> Runs:
    """The runs of a row for each run of the reference; what has no seed stands for all seeds of its CLIP."""
    return {key: run for key in reference if (run := runs.get(key, runs.get(key.rpartition(", seed ")[0])))}


def tables(rows: dict[str, Runs]) -> dict[str, str]:
    """The tables of the page by the command that each stands under."""
    about = machine("lightning", "transformers")
    with_coco = {name: runs for name, runs in rows.items() if any("coco/zsl/mAP" in run for run in runs.values())}
    return {
        COMMAND: f"{table(rows, FLICKR | VALIDATION, OVER_MKT)}\n\n{about}",
        f"{COMMAND}, COCO": f"{table(with_coco, OF_COCO, {})}\n\n{about}",
    }


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--clip", nargs="+", default=["photos-clip-0", "photos-clip-1"], help="folders or names on the Hub"
    )
    made.add_argument("--data", default=SHARED, help="folder of Parquet files, or a name on the Hub")
    made.add_argument(
        "--coco", type=Path, default=Path(COCO), help="COCO's photographs; left out if they are not there"
    )
    made.add_argument("--settings", choices=["small", "paper"], help="default: small for a folder, paper for the Hub's")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--variants", nargs="+", metavar="NAME", help="run these alone")
    made.add_argument("--root", type=Path, default=Path("runs/photos"), help="folder of the runs")
    made.add_argument("--jobs", type=int, default=1, help="runs at once")
    made.add_argument("--quick", action="store_true", help="two batches a stage: for tests, never into the docs")
    made.add_argument("--plan", action="store_true", help="say what would be loaded and run, and end")
    made.add_argument("--only-done", action="store_true", help="start no run")
    made.add_argument("--no-docs", action="store_true", help="leave docs/ and the record as they are")
    return made


def compare(args: argparse.Namespace) -> None:
    """Run what is missing, and write the tables.

    Raises:
        UserError: A CLIP or the photographs cannot be loaded.
    """
    settings = {"small": SMALL, "paper": PAPER, None: SMALL if all(map(is_there, args.clip)) else PAPER}[args.settings]
    coco = args.coco.absolute() if args.coco.is_file() else None
    plan = Comparison(args.clip, args.data, coco, args.root.absolute(), settings, args.seeds, args.quick)
    if unknown := set(args.variants or ()) - set(plan.variants):
        raise UserError(f"--variants: {min(unknown)!r} is none of {', '.join(plan.variants)}")
    print("\n".join(plan.said()), flush=True)
    if args.plan:
        return
    if not args.only_done:
        for clip in plan.clips:
            load_image_processor(clip)
            measure_training_free(plan, clip)
        threads = max(1, (os.cpu_count() or 1) // args.jobs)
        todo = [
            (plan, clip, variant, seed, threads)
            for seed in plan.seeds
            for clip in plan.clips
            for variant in args.variants or plan.variants
        ]
        with ThreadPoolExecutor(args.jobs) as pool:
            for _ in pool.map(lambda one: measure(*one), todo):
                pass
    rows = table_rows(plan)
    found = tables(rows)
    print("\n\n".join(found.values()), flush=True)
    if not (args.no_docs or args.quick):
        for command, text in found.items():
            put_table(PAGE, command, text)
        write_text(RECORD, json.dumps(rows, indent=1) + "\n")


def main() -> None:
    made = parser()
    args = made.parse_args()
    try:
        with quiet_libraries():
            compare(args)
    except UserError as error:
        made.error(str(error))


if __name__ == "__main__":
    main()
