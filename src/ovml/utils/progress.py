"""Progress bars for what runs once: reading annotations, looking for images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from ovml.utils.console import console, shows_progress

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Yield the items under a progress bar on the terminal's error stream; without a terminal, just yield them.

    >>> list(track([1, 2], "counting"))
    [1, 2]
    """
    from rich.markup import escape
    from rich.progress import track as rich_track

    yield from rich_track(
        items,
        escape(description),
        total=total,
        console=console(stderr=True),
        transient=True,
        disable=not shows_progress(),
    )
