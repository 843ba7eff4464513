"""HTML of the page: bars, heat maps and messages. All text in it is escaped."""

from __future__ import annotations

from html import escape
from pathlib import Path

from PIL import Image

from ovml.cli.app.pictures import data_uri, fitted
from ovml.cli.app.ranking import Ranking
from ovml.inference.explain import heat_map
from ovml.inference.patches import LabelEvidence, PatchGrid
from ovml.utils.resources import DEMO

SHOWN = 20
"""Labels shown of a ranking."""
SIDE = 640
"""Pixels of the shown image's long side."""

EMPTY = '<p class="ovml-empty">{}</p>'
NO_PICTURE = ""
"""The image before one is chosen."""
NOT_RANKED_YET = EMPTY.format("Type labels, then drop or paste an image:<br>the ranking appears here.")
RANKING = EMPTY.format("Ranking ...")
NO_LABELS = EMPTY.format("Type labels and press Enter, or choose a vocabulary:<br>the ranking appears here.")


def head(model_name: str) -> str:
    """The page's title; of a model's path the last two parts are told.

    >>> "Model: <b>demo/version_0</b>." in head("/home/ada/runs/demo/version_0")
    True
    """
    advice = "; it knows drawn shapes only: for photographs start the page with --model" if model_name == DEMO else ""
    return (
        '<h1 class="ovml-title">ovml</h1><p class="ovml-lead">Rank any labels for an image, and see where each was '
        f"found.<br>Model: <b>{escape('/'.join(Path(model_name).parts[-2:]))}</b>{advice}.</p>"
    )


def error(message: object) -> str:
    """One line that says what is wrong.

    >>> error("a < b")
    '<p class="ovml-error" role="alert">a &lt; b</p>'
    """
    return f'<p class="ovml-error" role="alert">{escape(str(message))}</p>'


def shown_score(score: float, probability: bool) -> str:
    """A score or a probability as text.

    >>> shown_score(0.0415, False), shown_score(0.0415, True)
    ('0.042', '4.2 %')
    """
    return f"{100 * score:.1f} %" if probability else f"{score:.3f}"


def bars(ranking: Ranking, title: str = "") -> str:
    """The best labels as buttons with bars.

    The length of a bar is its share of the best score, 0 if the score is negative; a probability is the length itself.

    Args:
        ranking: Labels and scores.
        title: Of the vocabulary; empty for typed labels.
    """
    best = 1.0 if ranking.probabilities else ranking.scores[0].score
    rows = []
    for rank, (label, score) in enumerate(ranking.scores[:SHOWN], start=1):
        share = min(max(score / best, 0), 1) if best > 0 else 0
        rows.append(
            f'<li><button type="button" class="ovml-bar" data-rank="{rank}" aria-pressed="false">'
            f'<span class="ovml-rank">{rank}</span><span class="ovml-name">{escape(label)}</span>'
            f'<span class="ovml-track"><span class="ovml-fill" style="width: {100 * share:.1f}%"></span></span>'
            f'<span class="ovml-score">{shown_score(score, ranking.probabilities)}</span></button></li>'
        )
    number = len(ranking.scores)
    count = f"{number:,} labels" if number > 1 else "1 label"
    source = f" ({escape(title.rpartition(' (')[0] or title)})" if title else ""
    best_shown = f", the best {SHOWN} shown" if number > SHOWN else ""
    note = f"{count} ranked{best_shown}{source}. Click a label to see where it was found, again for the image."
    items = "".join(rows)
    return f'<p class="ovml-note" role="status">{note}</p><ol class="ovml-bars" aria-label="best labels">{items}</ol>'


def view(image: Image.Image, name: str) -> str:
    """An image with its file name."""
    return _figure(image, f"The image {name}", f'<span class="ovml-note">{escape(name)}</span>')


def where(image: Image.Image, grid: PatchGrid, found: LabelEvidence) -> str:
    """A label's heat map with what it shows."""
    least, greatest = (f"{value:.3g}" for value in (found.similarity.min(), found.similarity.max()))
    patches = "the patch" if len(found.patches) == 1 else f"the {len(found.patches)} patches"
    caption = (
        f'<strong>{escape(found.label)}</strong> <span class="ovml-note">Light: patches like the label ({greatest}), '
        f"dark: unlike it ({least}). Outlined: {patches} of the local score. Score {found.score:.3f}, "
        f"global {found.global_score:.3f}, local {found.local_score:.3f}.</span>"
    )
    return _figure(heat_map(fitted(image, SIDE), grid, found), f"Heat map of where {found.label} was found", caption)


def _figure(image: Image.Image, alt: str, caption: str) -> str:
    return (
        f'<figure class="ovml-where"><img src="{data_uri(image)}" width="{image.width}" height="{image.height}" '
        f'alt="{escape(alt)}"><figcaption>{caption}</figcaption></figure>'
    )
