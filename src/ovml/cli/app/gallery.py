"""HTML of the gallery: a page of thumbnails, each with its best labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ovml.cli.app.markup import shown_score
from ovml.cli.app.uploads import THUMBNAILS
from ovml.inference.tagger import LabelScore

PAGE = 24
"""Images on a page."""


@dataclass
class Tile:
    """An image of the gallery.

    Args:
        name: Its file name.
        thumbnail: The name of its thumbnail.
        tags: Its best labels.
        probabilities: Whether the scores are calibrated.
        problem: Why it cannot be shown.
    """

    name: str
    thumbnail: str = ""
    tags: Sequence[LabelScore] = ()
    probabilities: bool = False
    problem: str = ""


def gallery(tiles: Mapping[int, Tile], first: int, total: int, chosen: int | None) -> str:
    """A page of the gallery.

    Args:
        tiles: The images by number.
        first: Position of the first.
        total: Number of images on all pages.
        chosen: Number of the image that is shown large.

    >>> 'data-picture="3"' in gallery({3: Tile("a.png", "x")}, 0, 1, None)
    True
    """
    pages = total > PAGE
    shown = f"{first + 1:,} to {first + len(tiles):,} of {total:,} images" if pages else f"{total:,} images"
    items = "".join(_tile(number, tile, number == chosen) for number, tile in tiles.items())
    steps = _step("Previous", first - PAGE, total) + _step("Next", first + PAGE, total) if pages else ""
    return (
        f'<div class="ovml-pages"><p class="ovml-note">{shown}. Click one to see its ranking.</p>{steps}</div>'
        f'<ol class="ovml-tiles" aria-label="images">{items}</ol>'
    )


def _tile(number: int, tile: Tile, chosen: bool) -> str:
    name = escape(tile.name)
    image = f'<img src="{THUMBNAILS}/{tile.thumbnail}" alt="" loading="lazy">'
    if tile.problem:
        image = ""
        about = f'<span class="ovml-problem">{escape(tile.problem.removeprefix(f"{tile.name}: "))}</span>'
    else:
        about = "".join(
            f'<span class="ovml-tag"><span>{escape(label)}</span> '
            f'<span class="ovml-value">{shown_score(score, tile.probabilities)}</span></span>'
            for label, score in tile.tags
        )
    return (
        f'<li><button type="button" class="ovml-tile" data-picture="{number}" aria-pressed="{str(chosen).lower()}">'
        f'<span class="ovml-thumb">{image}</span><span class="ovml-file" title="{name}">{name}</span>{about}'
        "</button></li>"
    )


def _step(text: str, first: int, total: int) -> str:
    disabled = "" if 0 <= first < total else ' aria-disabled="true"'  # a disabled button would lose the focus
    return f'<button type="button" class="ovml-step" data-first="{first}"{disabled}>{text}</button>'
