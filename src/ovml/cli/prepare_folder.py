"""What `ovml prepare` does, given a data module."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import jsonargparse
import numpy as np
from rich.table import Table as RichTable

from ovml.cli.command import spell_options, with_flags
from ovml.data import FolderDataModule
from ovml.data.base import Split
from ovml.data.cache import Table
from ovml.data.image_files import ImageCheck, lost_paths, verify_images
from ovml.utils.console import show
from ovml.utils.errors import UserError, one_line
from ovml.utils.files import write_text

Counts = np.ndarray[Any, np.dtype[np.int64]]

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
"""Arguments of the data modules that do not describe what is on disk."""


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(f"{' '.join(str(message).split())}; see '{self.prog} --help'") from ex

    def format_help(self, formatter: Any = None) -> str:
        """The help, with `-` between the words of an option."""
        return re.sub(r"--\w+", lambda found: found[0].replace("_", "-"), super().format_help(formatter))


def prepare_folder(name: str, class_path: str, argv: Sequence[str]) -> None:
    """Check every split, print what was found, and write lists of what is missing.

    Args:
        name: What the command line calls the data set.
        class_path: Its data module.
        argv: Options: arguments of the data module, `--verify`, `--workers` and `--out`.

    Raises:
        UserError: The options or files are at fault, or too many images are missing.
    """
    module, _, cls = class_path.rpartition(".")
    data_module: type[FolderDataModule] = getattr(import_module(module), cls)
    options = _parser(name, data_module).parse_args(spell_options(argv, "_")).as_dict()
    verify, workers, out = (options.pop(name) for name in ("verify", "workers", "out"))
    options.pop("config", None)
    try:
        _report(data_module(**options), verify, workers, out)
    except UserError as error:
        flags = {argument: "--" + argument.replace("_", "-") for argument in options}
        raise UserError(with_flags(one_line(error), flags)) from error


def _parser(name: str, data_module: type[FolderDataModule]) -> jsonargparse.ArgumentParser:
    parser = _Parser(
        prog=f"ovml prepare {name}",
        description=f"Check {data_module.title} on disk and read its annotations once.",
    )
    parser.add_class_arguments(data_module, as_group=False, skip=LOADER_ARGUMENTS)
    parser.add_argument(
        "--verify",
        type=Literal["full", "header", "none"],
        default="full",
        help="full: decode every image; header: read its first bytes; none: only look for the file",
    )
    parser.add_argument("--workers", type=int | None, default=None, help="threads (default: one per core)")
    parser.add_argument("--out", type=Path | None, default=None, help="folder of the lists (default: the cache)")
    return parser


def _report(data: FolderDataModule, verify: Any, workers: int | None, out: Path | None) -> None:
    reports = [_check_split(data, split, verify, workers) for split in data.own_splits]
    show(_table(data, reports))
    names = data.vocabulary
    show(f"labels: {len(names):,} ({len(names.seen):,} seen, {len(names.unseen):,} unseen)")
    for kind, columns in (("seen", names.seen_slice), ("unseen", names.unseen_slice)):
        for report in reports:
            if len(part := report.positives[columns]):
                show(
                    f"positives per {kind} label in {report.split}: {part.min():,} to {part.max():,}, "
                    f"median {int(np.median(part)):,}; {int((part == 0).sum()):,} labels have none"
                )
    out = out or reports[0].check.folder
    for report in reports:
        for what, number in report.annotations.counts.items():
            show(f"{report.split}: {number:,} {what}")
        if len(report.check.lost):
            file = out / f"lost-{report.split}.txt"
            write_text(file, "\n".join(lost_paths(report.annotations, report.check.lost)) + "\n")
            show(f"missing or unreadable in {report.split}: {file}")
    file = out / "labels.csv"
    write_text(file, _label_csv(names.names, reports))
    show(f"positives of every label: {file}")
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
