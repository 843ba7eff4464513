"""`ovml compare`: the settings in which runs differ, and their results side by side."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovml.cli.command import Command
from ovml.cli.compared_runs import read_runs
from ovml.cli.comparison import Cell, Comparison, compare
from ovml.metrics.protocols import CALIBRATION, shown_protocols
from ovml.metrics.results import FILES
from ovml.metrics.tables import ROW_TITLES, markdown_table, percent, protocol_titles
from ovml.utils.console import notice, on_one_line, printable, show, show_line, tsv_line
from ovml.utils.errors import UserError, beginning
from ovml.utils.files import check_output, write_errors, write_text

SUFFIXES = (".md", ".csv", ".json")
FORMATS = ("table", "tsv")


class Compare(Command):
    """Compares runs of `ovml fit`; it needs neither torch nor Lightning."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the runs, the metrics and the output."""
        parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or JSON files of results; two or more")
        parser.add_argument(
            "--metrics",
            metavar="A,B,...",
            help="such as mAP,P@3 (default: mAP, F1@k and ECE in tables; all in other forms)",
        )
        parser.add_argument("--out", type=Path, metavar="FILE", help="write comparison.md, .csv or .json")
        parser.add_argument("--overwrite", action="store_true", help="overwrite --out")
        parser.add_argument(
            "--format",
            choices=FORMATS,
            help="what is printed without --out: tables, or lines separated by tabs (default: tables on a terminal)",
        )

    def run(self, args: argparse.Namespace) -> None:
        """Read all runs, then print or write."""
        if len(args.runs) < 2:
            raise UserError(f"only one run, {args.runs[0]}: give two or more, such as runs/demo/version_*")
        if args.out is None:
            form = args.format or ("table" if sys.stdout.isatty() else "tsv")
        else:
            check_output(args.out, SUFFIXES, args.overwrite)
            if args.format is not None:
                raise UserError("--format: is of what is printed; the ending of --out says what is written")
            form = args.out.suffix.lower()
        comparison = compare(read_runs(args.runs), args.metrics, short=form in ("table", ".md"))
        if args.out is not None:
            with write_errors(args.out):
                write_text(args.out, _text(comparison, form))
            notice(f"{args.out}: {len(args.runs)} runs compared")
        elif form == "tsv":
            for line in _lines(comparison):
                show_line(tsv_line(*line))
        else:
            for grid in _grids(comparison):
                grid.show()
        for note in comparison.notes:
            notice(note)


@dataclass(frozen=True)
class Grid:
    """A table of text: names in the first columns, a column per group of runs after them."""

    title: str
    names: Sequence[str]
    runs: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def show(self) -> None:
        """Print it, without the names that repeat those of the row above."""
        from rich.table import Table

        table = Table(title=self.title, caption=self.caption or None)
        for name in self.names:
            table.add_column(name, no_wrap=True)
        for run in self.runs:
            table.add_column(printable(run), justify="right", overflow="fold")
        number, before = len(self.names), [""]
        for row in self.rows:
            if number > 1 and row[0] != before[0]:
                table.add_section()
            is_new = [row[: column + 1] != before[: column + 1] for column in range(number - 1)]
            names = [name if new else "" for name, new in zip(row, [*is_new, True], strict=False)]
            table.add_row(*names, *row[number:])
            before = list(row)
        show(table)

    def markdown(self) -> str:
        """The table in Markdown."""
        runs = [_escaped(run.replace("\n", ", ")) for run in self.runs]
        table = markdown_table(self.names, runs, [[*map(_escaped, row)] for row in self.rows])
        return "\n".join([f"## {self.title}", "", table, *(["", self.caption] if self.caption else []), ""])


def _grids(comparison: Comparison) -> list[Grid]:
    """The tables for people: settings that differ, and a table of results per split."""
    rows = [[name, *(beginning(own, 60) or "-" for own in values)] for name, values in comparison.settings.items()]
    grids = [Grid("settings that differ", ["setting"], comparison.names, rows)] if rows else []
    titles = protocol_titles(f"{cell.protocol}/" for cell in comparison.cells)
    shown = [*shown_protocols(titles), CALIBRATION]
    first, *others = comparison.groups
    says = [f"(difference to {first[0].name})"] if others else []
    says += ["± sample standard deviation of seeds"] if any(len(group) > 1 for group in comparison.groups) else []
    for split in FILES:
        own = [cell for cell in comparison.cells if cell.split == split and cell.protocol in shown]
        filled = [i for i, _ in enumerate(comparison.groups) if any(cell.values[i] for cell in own)]
        rows = [
            [
                titles.get(cell.protocol, "calibrated"),
                ROW_TITLES.get(cell.row, cell.row),
                cell.metric,
                *(_shown(comparison, cell, position) for position in filled),
            ]
            for cell in own
        ]
        if rows:
            names = [comparison.names[position] for position in filled]
            grids.append(Grid(f"{split} (%)", ["labels", "model", "metric"], names, rows, ", ".join(says)))
    return grids


def _shown(comparison: Comparison, cell: Cell, position: int) -> str:
    """A value in percent, with its spread over seeds and the difference to the first group."""
    value, difference = cell.values[position], comparison.difference(cell, position)
    if value is None:
        return "-"
    spread = "" if value.deviation is None else f" ± {percent(value.deviation)}"
    change = "" if difference is None else f" ({round(100 * difference, 1) + 0.0:+.1f})"
    return percent(value.mean) + spread + change


def _lines(comparison: Comparison) -> list[list[str]]:
    """The records as text, each with the settings that differ; first the names of the columns."""
    settings, records = comparison.settings, comparison.records()
    places = {name.replace("\n", ", "): position for position, name in enumerate(comparison.names)}
    lines = [[*(records[0] if records else ()), *settings]]
    for record in records:
        cells = ["" if v is None else f"{v:.6f}" if isinstance(v, float) else str(v) for v in record.values()]
        lines.append([*cells, *(values[places[record["run"]]] for values in settings.values())])
    return lines


def _text(comparison: Comparison, suffix: str) -> str:
    """The content of a file with one of `SUFFIXES`."""
    if suffix == ".md":
        notes = [f"- {note}" for note in comparison.notes]
        return "\n".join([*(grid.markdown() for grid in _grids(comparison)), *notes, ""])
    if suffix == ".csv":
        csv.writer(file := io.StringIO(), lineterminator="\n").writerows(_lines(comparison))
        return file.getvalue()
    groups = [
        {
            "runs": [str(run.path) for run in group],
            "settings": {name: values[position] for name, values in comparison.settings.items()},
        }
        for position, group in enumerate(comparison.groups)
    ]
    return json.dumps({"groups": groups, "results": comparison.records(), "notes": comparison.notes}, indent=1)


def _escaped(cell: str) -> str:
    return on_one_line(cell).replace("|", r"\|")
