"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

ROW_TITLES = {"zero-shot": "zero-shot CLIP", "vision": "stage 1: vision", "prompt": "stage 2: prompt"}


def results_table(rows: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """A table of metrics in percent: a row per model, ZSL and GZSL mAP and precision, recall, F1 at k.

    Args:
        rows: Metrics by row name; keys such as `zsl/mAP` and `gzsl/F1@3`, values in 0..1.
        title: What was evaluated.

    Example:
        >>> results_table({"zero-shot": {"zsl/mAP": 0.25}}, "validation").row_count
        1
    """
    from rich.table import Table

    names = next(iter(rows.values()), {})
    protocols = [p for p in ("zsl", "gzsl") if any(n.startswith(f"{p}/") for n in names)] or ["seen"]
    columns = [n for p in protocols for n in names if n.startswith(f"{p}/")]
    table = Table(title=f"{title} (%)")
    table.add_column("")
    for column in columns:
        protocol, metric = column.split("/")
        table.add_column(f"{protocol.upper()}\n{metric}", justify="right")
    for row, metrics in rows.items():
        table.add_row(ROW_TITLES.get(row, row), *(f"{100 * metrics[c]:.1f}" for c in columns))
    return table


def tag_table(tags: list[tuple[str, list[tuple[str, float]]]]) -> Table:
    """A table of ranked labels: a row per image and label."""
    from rich.table import Table

    table = Table("image", "label")
    table.add_column("score", justify="right")
    for image, ranked in tags:
        for rank, (label, score) in enumerate(ranked):
            table.add_row(image if rank == 0 else "", label, f"{score:.4f}", end_section=rank == len(ranked) - 1)
    return table
