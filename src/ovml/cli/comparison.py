"""The comparison of runs with the first of them."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from ovml.cli.compared_runs import Results, Run, group_seeds, other_images, shown_settings
from ovml.metrics.protocols import CALIBRATION
from ovml.metrics.results import FILES
from ovml.metrics.tables import metric_order, protocol_titles
from ovml.utils.errors import UserError

LAST = "last stage"
"""Row of the last stage, whatever its name; made where runs end with different stages."""


class Value(NamedTuple):
    """A metric of several seeds: mean, sample standard deviation (`None` for one), and their number."""

    mean: float
    deviation: float | None
    runs: int


class Cell(NamedTuple):
    """A metric of one row by one protocol, in one group of runs after the other."""

    split: str
    row: str
    protocol: str
    metric: str
    values: list[Value | None]


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, compared with the first.

    Attributes:
        groups: Runs that differ in the seed alone.
        cells: Their results, in the order of tables.
        reasons: Why a split of a group cannot be compared with the first, by split and position of the group.
        notes: What a reader must know, a line each.
    """

    groups: list[list[Run]]
    cells: list[Cell]
    reasons: dict[tuple[str, int], str]
    notes: list[str]

    @property
    def names(self) -> list[str]:
        """Names of the groups, a run per line."""
        return ["\n".join(run.name for run in group) for group in self.groups]

    @property
    def settings(self) -> dict[str, list[str]]:
        """Values of each group by option; those of several seeds are listed."""
        found = {}
        for name in shown_settings([run for group in self.groups for run in group]):
            own = [[_typed(run.settings, name) for run in group] for group in self.groups]
            found[_option(name)] = [", ".join(dict.fromkeys(values)) for values in own]
        return found

    def difference(self, cell: Cell, position: int) -> float | None:
        """The difference of a group to the first, if there is one to tell."""
        first, own = cell.values[0], cell.values[position]
        if position == 0 or first is None or own is None or (cell.split, position) in self.reasons:
            return None
        return own.mean - first.mean

    def records(self) -> list[dict[str, Any]]:
        """Each result of each group, with numbers from 0 to 1."""
        return [
            {
                "run": self.names[position].replace("\n", ", "),
                "runs": value.runs,
                "split": cell.split,
                "model": cell.row,
                "labels": cell.protocol,
                "metric": cell.metric,
                "value": value.mean,
                "deviation": value.deviation,
                "difference": self.difference(cell, position),
            }
            for cell in self.cells
            for position, value in enumerate(cell.values)
            if value is not None
        ]


def compare(runs: Sequence[Run], metrics: str | None = None, short: bool = False) -> Comparison:
    """Compare runs with the first of them.

    Args:
        runs: Two or more.
        metrics: Names of metrics, separated by commas.
        short: Whether to leave precision and recall out, if no metrics are named.

    Raises:
        UserError: No run has results, or none has a metric of these.
    """
    groups = group_seeds(runs)
    found = _cells(groups)
    if not found:
        raise UserError(f"{runs[0].path}: no results yet, nor in the other runs; 'ovml fit --ckpt_path RUN' goes on")
    known = sorted({cell.metric for cell in found}, key=metric_order)
    wanted = known
    if metrics is not None:
        wanted = [name.strip() for name in metrics.split(",")]
        if unknown := [name for name in wanted if name not in known]:
            raise UserError(f"metrics: no {unknown[0]!r}; there are {', '.join(known)}")
    elif short:
        wanted = [name for name in known if name in ("mAP", "ECE") or name.startswith("F1@")]
    reasons: dict[tuple[str, int], str] = {}
    notes: list[str] = []
    for position, group in enumerate(groups):
        for run, split in ((run, split) for run in group for split in FILES if run.results.get(split)):
            if run is not runs[0] and (reason := other_images(run, runs[0], split)):
                reasons[split, position] = reason
                told = f"not comparable with {runs[0].name}: other images or labels were evaluated ({reason})"
                notes.append(f"{run.name}: {told}")
    notes += [note for run in runs for note in _missing(run)]
    if len(groups) == 1:
        notes.append(f"one setting, {len(runs)} runs: give runs of another setting too, to see differences")
    return Comparison(groups, [cell for cell in found if cell.metric in wanted], reasons, list(dict.fromkeys(notes)))


def _cells(groups: Sequence[Sequence[Run]]) -> list[Cell]:
    """All metrics of all groups, in the order of tables.

    A row for the last stage is added where the runs end with different ones.
    """
    found = []
    for split in FILES:
        by_group = _with_last([[run.results.get(split, {}) for run in group] for group in groups])
        names = dict.fromkeys((row, name) for own in by_group for rows in own for row in rows for name in rows[row])
        for row, name in names:
            values = [_value([rows.get(row, {}).get(name) for rows in own]) for own in by_group]
            protocol, _, metric = name.rpartition("/")
            found.append(Cell(split, row, protocol, metric, values))
    splits, models = list(FILES), [*dict.fromkeys(cell.row for cell in found if cell.row != LAST), LAST]
    protocols = [*protocol_titles(f"{cell.protocol}/" for cell in found), CALIBRATION]

    def place(cell: Cell) -> Any:
        place = splits.index(cell.split), protocols.index(cell.protocol), models.index(cell.row)
        return *place, metric_order(cell.metric)

    return sorted(found, key=place)


def _with_last(groups: Sequence[Sequence[Results]]) -> Sequence[Sequence[Results]]:
    """Results with a row for the last stage, if it is not the same in all."""
    ends = {list(rows)[-1] for own in groups for rows in own if len(rows) > 1}
    if len(ends) < 2:
        return groups
    return [[{**rows, LAST: rows[list(rows)[-1]]} if len(rows) > 1 else rows for rows in own] for own in groups]


def _value(numbers: Sequence[float | None]) -> Value | None:
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    if not known:
        return None
    return Value(fmean(known), stdev(known) if len(known) > 1 else None, len(known))


def _missing(run: Run) -> list[str]:
    """What a run lacks, and the command that gives it."""
    place = shlex.quote(str(run.path))
    config = "" if run.settings is not None else "--config FILE "
    notes = [] if run.settings is not None else [f"{run.name}: it has no config.yaml, so its settings are not known"]
    if run.path.is_dir():
        done = max(0, len(run.results["validation"]) - 1)
        if done < run.stages:
            notes.append(f"{run.name}: {done} of {run.stages} stages done; go on with: ovml fit --ckpt_path {place}")
        if not run.results["test"]:
            notes.append(f"{run.name}: no test results; get them with: ovml test {config}--ckpt_path {place}")
    return notes


def _option(name: str) -> str:
    """A setting as it is typed; one of a class in a list can only stand in YAML.

    >>> _option("model.loss.temperature"), _option("model.stages.VisionStage.lr")
    ('--model.loss.temperature', 'model.stages, VisionStage.lr')
    """
    inside = next((part for part in name.split(".") if part[:1].isupper()), None)
    if inside is None:
        return f"--{name}"
    place, _, argument = name.partition(f".{inside}")
    return f"{place}, {inside}{argument}"


def _typed(settings: dict[str, Any] | None, name: str) -> str:
    """A value as it is typed; nothing where a run has no such setting."""
    if settings is None or name not in settings:
        return ""
    value = settings[name]
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
