"""What `ovml prepare` does, given a data module."""

from __future__ import annotations

import csv
import inspect
import io
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jsonargparse
import numpy as np
import pyarrow.compute as pc
from jsonargparse.typing import PositiveInt
from rich.table import Table as RichTable

from ovml.cli.parsing import UserErrors
from ovml.data import FolderDataModule, MultiLabelDataModule
from ovml.data.base import Split
from ovml.data.cache import Table
from ovml.data.image_files import ImageCheck, lost_paths, verify_images
from ovml.utils.console import show
from ovml.utils.files import check_folder, write_text

Counts = np.ndarray[Any, np.dtype[np.int64]]

LOADER_ARGUMENTS = {*inspect.signature(MultiLabelDataModule).parameters, "validation_size"}
"""Arguments of the data modules that do not describe what is on disk."""


class _Parser(UserErrors, jsonargparse.ArgumentParser):
    def format_help(self, formatter: Any = None) -> str:
        """The help, with `-` between the words of an option."""
        return re.sub(r"--\w+", lambda found: found[0].replace("_", "-"), super().format_help(formatter))


def option_parser(prog: str, data_module: type[FolderDataModule]) -> jsonargparse.ArgumentParser:
    """The parser of a data set's options: arguments of its data module, `--verify`, `--workers` and `--out`."""
    parser = _Parser(prog=prog, description=f"Check {data_module.title} on disk and read its annotations once.")
    parser.add_class_arguments(data_module, as_group=False, skip=LOADER_ARGUMENTS)
    parser.add_argument(
        "--verify",
        type=Literal["full", "header", "none"],
        default="full",
        help="full: decode every image; header: read its first bytes; none: only look for the file",
    )
    parser.add_argument("--workers", type=PositiveInt | None, default=None, help="threads (default: one per core)")
    parser.add_argument("--out", type=Path | None, default=None, help="folder of the lists (default: the cache)")
    return parser


class _Report(NamedTuple):
    split: Split
    annotations: Table
    check: ImageCheck
    positives: Counts  # [L]
    negatives: Counts  # [L]


def prepare_folder(
    data_module: type[FolderDataModule], verify: Any, workers: int | None, out: Path | None, **arguments: Any
) -> None:
    """Check every split, print what was found, and write lists of what is missing.

    Args:
        data_module: Class of the data set.
        verify: How images are verified: `full`, `header` or `none`.
        workers: Threads. Default: one per core.
        out: Folder of the lists. Default: the cache.
        arguments: Of the data module.

    Raises:
        UserError: The arguments or files are at fault, or too many images are missing.
    """
    if out is not None:
        check_folder(out, "out")
    data = data_module(**arguments)
    names = data.vocabulary
    reports = []
    for split in data.own_splits:
        annotations, check = data.annotations(split), data.check(split)
        if verify != "none":
            check = verify_images(annotations, check, verify, workers)
        counts = (_label_counts(annotations, column, len(names)) for column in ("positive", "negative"))
        reports.append(_Report(split, annotations, check, *counts))
    show(_table(data, reports, verified=verify != "none"))
    show(f"labels: {len(names):,} ({len(names.seen):,} seen, {len(names.unseen):,} unseen)")
    for kind, columns in (("seen", names.seen_slice), ("unseen", names.unseen_slice)):
        for report in reports:
            if len(part := report.positives[columns]):
                show(
                    f"positives per {kind} label in {report.split}: {part.min():,} to {part.max():,}, "
                    f"median {int(np.median(part)):,}; {int((part == 0).sum()):,} labels have none"
                )
    for report in reports:
        for labels, number in _twins(report):
            same = " and ".join(repr(names.names[i]) for i in labels)
            show(f"{report.split}: {same} are present in the same {number:,} images; is that an error of the files?")
    for number, splits in _shared_images(reports):
        show(f"{number:,} images are in {splits}: results on them say little")
    out = out or reports[0].check.folder
    for report in reports:
        for what, number in report.annotations.counts.items():
            show(f"{report.split}: {number:,} {what}")
        if len(report.check.lost):
            file = out / f"lost-{report.split}.txt"
            write_text(file, "\n".join(lost_paths(report.annotations, report.check.lost)) + "\n")
            show(f"missing or unreadable in {report.split}: {file}")
    table = io.StringIO()
    rows = zip(map(_cell, names.names), *(report.positives for report in reports), strict=True)
    csv.writer(table, lineterminator="\n").writerows([["label", *(report.split for report in reports)], *rows])
    write_text(out / "labels.csv", table.getvalue())
    show(f"positives of every label: {out / 'labels.csv'}")
    for report in reports:
        data.accept(report.split, report.check)


def _shared_images(reports: Sequence[_Report]) -> Iterator[tuple[int, str]]:
    """Number of image files that two splits share, and the splits' names."""
    for first, second in combinations(reports, 2):
        paths = (pc.struct_field(report.annotations.rows.data.column("image"), "path") for report in (first, second))
        if shared := pc.sum(pc.is_in(*(pc.unique(some.drop_null()) for some in paths))).as_py():
            yield shared, f"both {first.split} and {second.split}"


def _twins(report: _Report, least: int = 10) -> Iterator[tuple[list[int], int]]:
    """Labels that are present in the same images, `least` or more; and the number of these."""
    rows = report.annotations.rows
    # Sums of a random number of each image are equal for the same images, and for no others.
    numbers = np.random.default_rng(0).integers(2**64, size=len(rows), dtype=np.uint64)
    sums, start = np.zeros(len(report.positives), dtype=np.uint64), 0
    for chunk in rows.data.column("positive").chunks:
        images = pc.list_parent_indices(chunk).to_numpy() + start
        np.add.at(sums, chunk.flatten().to_numpy(), numbers[images])
        start += len(chunk)
    groups: dict[tuple[int, int], list[int]] = {}
    for label, pair in enumerate(zip(report.positives.tolist(), sums.tolist(), strict=True)):
        groups.setdefault(pair, []).append(label)
    return ((labels, number) for (number, _), labels in groups.items() if len(labels) > 1 and number >= least)


def _cell(label: str) -> str:
    """A label as a cell of CSV that no spreadsheet takes for a formula.

    >>> _cell("=1+1"), _cell("cat")
    ("'=1+1", 'cat')
    """
    return f"'{label}" if label.startswith(("=", "+", "-", "@")) else label


def _label_counts(table: Table, column: str, num_labels: int) -> Counts:
    chunks = table.rows.data.column(column).chunks
    counts = (np.bincount(chunk.flatten().to_numpy(), minlength=num_labels) for chunk in chunks)
    return sum(counts, np.zeros(num_labels, dtype=np.int64))


def _table(data: FolderDataModule, reports: Sequence[_Report], verified: bool) -> RichTable:
    table = RichTable(title=f"{data.title}: {data.root}")
    for column in ("split", "listed", "found", "missing", "unreadable", "positives", "negatives"):
        table.add_column(column, justify="left" if column == "split" else "right", no_wrap=True)
    for report in reports:
        check = report.check
        table.add_row(
            report.split,
            *(f"{n:,}" for n in (check.listed, check.listed - len(check.missing), len(check.missing))),
            f"{len(check.unreadable):,}" if verified else "not checked",
            f"{report.positives.sum():,}",
            "all others" if data.exhaustive else f"{report.negatives.sum():,}",
        )
    return table
