"""Progress bars for what is done once: reading annotations, looking for pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from ovml.utils.console import shows_progress

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Yield the items under a progress bar on the terminal's error stream; without a terminal, just yield them.

    >>> list(track([1, 2], "counting"))
    [1, 2]
    """
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    yield from rich_track(
        items, description, total=total, console=console, transient=True, disable=not shows_progress()
    )
