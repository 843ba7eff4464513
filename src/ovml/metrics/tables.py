"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ovml.metrics.protocols import CALIBRATION, default_protocols, shown_protocols

Table: TypeAlias = Any
"""A `rich.table.Table`; rich is imported when a table is made."""
Rows: TypeAlias = Mapping[str, Mapping[str, float]]
"""Metrics by row name; keys such as `zsl/mAP` and `gzsl/F1@3`, values in 0..1."""

ROW_TITLES = {
    "zero-shot": "zero-shot CLIP",
    "vision": "vision stage",
    "lora": "LoRA",
    "visual_prompt": "visual prompts",
    "ladder": "RAM's ladder",
    "prompt": "prompt stage",
}


def results_table(
    rows: Rows, title: str, titles: Mapping[str, str] | None = None, row_titles: Mapping[str, str] = ROW_TITLES
) -> Table:
    """A table of metrics in percent: mAP and precision, recall, F1 at k, a block of rows per protocol.

    Args:
        rows: Metrics by row name, such as `{"prompt": {"zsl/mAP": 0.3}}`.
        title: What was evaluated.
        titles: Titles of the protocols by name, in their order (`OpenVocabularyEvaluation.titles`). Default: those of
            ZSL, GZSL and seen labels; others are made of their names.
        row_titles: Titles of the rows by name.

    Example:
        >>> results_table({"zero-shot": {"zsl/mAP": 0.25}}, "validation").row_count
        1
    """
    names = [name for values in rows.values() for name in values]
    titles = protocol_titles(names, titles)
    protocols = shown_protocols(titles)
    shown = {name.split("/")[1] for name in names if name.partition("/")[0] in protocols}
    metrics = sorted(shown, key=metric_order)
    table = _table(f"{title}: labels ranked by score (%)", ("labels", "model"), metrics)
    for protocol in protocols:
        for position, (row, values) in enumerate(rows.items()):
            table.add_row(
                titles[protocol] if position == 0 else "",
                row_titles.get(row, row),
                *(percent(values.get(f"{protocol}/{metric}")) for metric in metrics),
                end_section=position == len(rows) - 1,
            )
    return table


def protocol_titles(metrics: Iterable[str], titles: Mapping[str, str] | None = None) -> dict[str, str]:
    """Titles of the protocols that there are metrics of, by name and in order.

    Args:
        metrics: Names of metrics.
        titles: All titles by name. Default: those of ZSL, GZSL and seen labels; others are made of their names.

    >>> protocol_titles(["new_words/mAP", "zsl/mAP", "calibration/ECE"])
    {'zsl': 'ZSL', 'new_words': 'new words'}
    """
    known = {protocol.name: protocol.title for protocol in default_protocols()} if titles is None else titles
    measured = dict.fromkeys(name.partition("/")[0] for name in metrics if "/" in name)
    order = [name for name in dict.fromkeys((*known, *measured)) if name in measured and name != CALIBRATION]
    return {name: known.get(name, name.replace("_", " ")) for name in order}


def calibration_table(rows: Rows, title: str, row_titles: Mapping[str, str] = ROW_TITLES) -> Table | None:
    """A table of how well probabilities are calibrated, in percent; `None` where no row is calibrated.

    Args:
        rows: Metrics by row name, with the keys `calibration/ECE` and so on (`evaluate_calibration`).
        title: What was evaluated.
        row_titles: Titles of the rows by name.
    """
    calibrated = {row: values for row, values in rows.items() if f"{CALIBRATION}/ECE" in values}
    if not calibrated:
        return None
    columns = ("ECE", "ECE given", "F1")
    table = _table(f"{title}: probabilities (%)", ["model"], columns)
    for row, values in calibrated.items():
        numbers = [values.get(f"{CALIBRATION}/{column}") for column in columns]  # missing where no label was returned
        cells = ["" if number is None else f"{100 * number:.2f}" for number in numbers]
        table.add_row(row_titles.get(row, row), *cells)
    return table


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for name in names:
        table.add_column(name, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def markdown_table(names: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, of text that is escaped.

    Args:
        names: Titles of the first columns.
        numbers: Titles of the columns after them, which are aligned on the right.
        rows: Cells.

    >>> print(markdown_table(["model"], ["mAP"], [["CLIP", "25.0"]]))
    | model | mAP |
    |---|---:|
    | CLIP | 25.0 |
    """
    header, *lines = (f"| {' | '.join(cells)} |" for cells in ((*names, *numbers), *rows))
    return "\n".join([header, f"|{'---|' * len(names)}{'---:|' * len(numbers)}", *lines])


def percent(value: float | None) -> str:
    """A share in percent; nothing where there is none.

    >>> percent(0.25), percent(None)
    ('25.0', '')
    """
    return "" if value is None else f"{100 * value:.1f}"


def metric_order(metric: str) -> tuple[int, str]:
    """Sorts metrics: mAP, then precision, recall, F1 by k; others by name.

    >>> sorted(["F1@5", "R@3", "mAP", "P@3"], key=metric_order)
    ['mAP', 'P@3', 'R@3', 'F1@5']
    """
    kind, _, k = metric.partition("@")
    return int(k) if k.isdigit() else 0, {"P": "1", "R": "2", "F1": "3"}.get(kind, kind)
