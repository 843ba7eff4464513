"""`ovml prepare`: check a data set on disk, count what is there, and read its annotations once."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

import jsonargparse
import numpy as np
from rich.table import Table as RichTable

from ovml.data import JSONDataModule, NUSWIDEDataModule, OpenImagesDataModule
from ovml.data.cache import Table
from ovml.data.image_files import ImageCheck, lost_paths, verify_images
from ovml.training.stages import write_aside
from ovml.utils.errors import UserError

if TYPE_CHECKING:
    from ovml.data import FolderDataModule
    from ovml.data.base import Split

Counts = np.ndarray[Any, np.dtype[np.int64]]

DATA_SETS: dict[str, type[FolderDataModule]] = {
    "nuswide": NUSWIDEDataModule,
    "openimages": OpenImagesDataModule,
    "json": JSONDataModule,
}
LOADER_ARGUMENTS = {
    "clip",
    "batch_size",
    "eval_batch_size",
    "num_workers",
    "augment",
    "crop_scale",
    "resize",
    "normalization",
    "skip_broken",
    "seed",
    "rand_augment",
    "validation_size",
}
"""Arguments of the data modules that say nothing about what is on disk."""


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(f"{' '.join(str(message).split())}; see 'ovml prepare --help'") from ex


def prepare(argv: list[str]) -> None:
    """Read annotations, look for pictures, verify them, print counts, list what is missing."""
    arguments = make_parser().parse_args(argv[1:])
    options = arguments[arguments.data_set].as_dict()
    verify, workers, out = (options.pop(name) for name in ("verify", "workers", "out"))
    options.pop("config", None)
    data = DATA_SETS[arguments.data_set](**options)
    _report(data, verify, workers, out)


def make_parser() -> jsonargparse.ArgumentParser:
    """The options of `ovml prepare`, of each data set."""
    parser = _Parser(prog="ovml prepare", description="Check a data set on disk and read its annotations once.")
    commands = parser.add_subcommands(dest="data_set", required=True)
    for name, cls in DATA_SETS.items():
        command = _Parser(description=f"Check {cls.title} on disk and read its annotations once.")
        command.add_class_arguments(cls, as_group=False, skip=LOADER_ARGUMENTS)
        command.add_argument(
            "--verify",
            type=Literal["full", "header", "none"],
            default="full",
            help="full: decode every picture; header: look at its first bytes; none: only look for the file",
        )
        command.add_argument("--workers", type=int | None, default=None, help="threads (default: one per core)")
        command.add_argument("--out", type=Path | None, default=None, help="folder of the lists (default: the cache)")
        commands.add_subcommand(name, command, help=f"{cls.title}")
    return parser


def _report(data: FolderDataModule, verify: Any, workers: int | None, out: Path | None) -> None:
    """Check every split, print what was found, and end in an error where too much is lost."""
    from rich.console import Console

    console = Console()
    reports = [_check_split(data, split, verify, workers) for split in data.own_splits]
    console.print(_table(data, reports))
    names = data.vocabulary
    console.print(f"labels: {len(names):,} ({len(names.seen):,} seen, {len(names.unseen):,} unseen)")
    for kind, columns in (("seen", names.seen_slice), ("unseen", names.unseen_slice)):
        for report in reports:
            if len(part := report.positives[columns]):
                console.print(
                    f"positives per {kind} label in {report.split}: {part.min():,} to {part.max():,}, "
                    f"median {int(np.median(part)):,}; {int((part == 0).sum()):,} labels have none"
                )
    out = out or reports[0].check.folder
    for report in reports:
        for what, number in report.annotations.counts.items():
            console.print(f"{report.split}: {number:,} {what}")
        if len(report.check.lost):
            file = out / f"lost-{report.split}.txt"
            write_aside(file, "\n".join(lost_paths(report.annotations, report.check.lost)) + "\n")
            console.print(f"missing or unreadable in {report.split}: {file}", soft_wrap=True, highlight=False)
    file = out / "labels.csv"
    write_aside(file, _label_csv(names.names, reports))
    console.print(f"positives of every label: {file}", soft_wrap=True, highlight=False)
    for report in reports:
        data.accept(report.split, report.check)


class _Report(NamedTuple):
    split: Split
    annotations: Table
    check: ImageCheck
    verified: bool
    positives: Counts  # [L]
    negatives: Counts  # [L]


def _check_split(data: FolderDataModule, split: Split, verify: Any, workers: int | None) -> _Report:
    annotations, check = data.annotations(split), data.check(split)
    if verify != "none":
        check = verify_images(annotations, check, verify, workers)
    size = len(data.vocabulary)
    positives, negatives = (_label_counts(annotations, column, size) for column in ("positive", "negative"))
    return _Report(split, annotations, check, verify != "none", positives, negatives)


def _label_counts(table: Table, column: str, num_labels: int) -> Counts:
    counts = np.zeros(num_labels, dtype=np.int64)
    for chunk in table.rows.data.column(column).chunks:
        counts += np.bincount(chunk.flatten().to_numpy(), minlength=num_labels)
    return counts


def _table(data: FolderDataModule, reports: Sequence[_Report]) -> RichTable:
    table = RichTable(title=f"{data.title}: {data.root}")
    for column in ("split", "listed", "found", "missing", "unreadable", "positives", "negatives"):
        table.add_column(column, justify="left" if column == "split" else "right", no_wrap=True)
    for report in reports:
        check = report.check
        table.add_row(
            report.split,
            *(f"{n:,}" for n in (check.listed, check.listed - len(check.missing), len(check.missing))),
            f"{len(check.unreadable):,}" if report.verified else "not checked",
            f"{report.positives.sum():,}",
            "all others" if data.exhaustive else f"{report.negatives.sum():,}",
        )
    return table


def _label_csv(names: Sequence[str], reports: Sequence[_Report]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", *(report.split for report in reports)])
    for name, *numbers in zip(names, *(report.positives.tolist() for report in reports), strict=True):
        writer.writerow([name, *numbers])
    return text.getvalue()
