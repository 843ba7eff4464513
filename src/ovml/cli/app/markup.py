"""HTML of the page: bars, heat maps and messages. All text in it is escaped."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from ovml.cli.app.ranking import Ranking
from ovml.inference.explain import heat_map
from ovml.inference.patches import LabelEvidence, PatchGrid
from ovml.utils.resources import DEMO

SHOWN = 20
"""Labels shown of a ranking."""
SIDE = 400
"""Pixels of a heat map's long side."""

ON_CLICK = """
element.addEventListener('click', (event) => {
  const bar = event.target.closest('button[data-rank]');
  if (!bar) return;
  for (const other of element.querySelectorAll('button[data-rank]')) {
    other.setAttribute('aria-pressed', String(other === bar));
  }
  trigger('click', {rank: Number(bar.dataset.rank)});
});
"""
"""Script of `bars`: a click marks the bar and sends its rank."""

CSS = """
.gradio-container { width: 100%; max-width: 1400px !important; margin: 0 auto !important; }
.ovml-title { font-size: 1.7rem; font-weight: 700; margin: .4rem 0 .2rem; }
.ovml-lead { color: var(--body-text-color-subdued); line-height: 1.55; margin: 0 0 .4rem; }
#head .html-container, #result .html-container, #where .html-container { padding: 0; }
.ovml-note { color: var(--body-text-color-subdued); font-size: var(--text-sm); margin: 0 0 .6rem; line-height: 1.45; }
.ovml-empty { color: var(--body-text-color-subdued); border: 1px dashed var(--border-color-primary);
  border-radius: var(--radius-lg); padding: 3.5rem 1.5rem; text-align: center; line-height: 1.7; }
.ovml-error { color: var(--error-text-color); background: var(--error-background-fill);
  border: 1px solid var(--error-border-color); border-radius: var(--radius-lg); padding: .7rem .9rem; margin: 0;
  overflow-wrap: anywhere; }
.ovml-bars { list-style: none; margin: 0; padding: 0; }
.ovml-bars li { margin: 0; padding: 0; }
.ovml-bar { display: grid; grid-template-columns: 1.6rem minmax(7rem, 42%) 1fr 3.6rem; gap: .6rem; align-items: center;
  width: 100%; padding: .22rem .5rem; border: 1px solid transparent; border-radius: var(--radius-md);
  background: none; color: var(--body-text-color); font-size: var(--text-md); font-weight: 400;
  text-align: left; cursor: pointer; }
.ovml-bar:hover { background: var(--background-fill-secondary); }
.ovml-bar:focus-visible { outline: 2px solid var(--color-accent); outline-offset: -1px; }
.ovml-bar[aria-pressed="true"] { border-color: var(--color-accent); background: var(--background-fill-secondary); }
.ovml-bar span { overflow-wrap: anywhere; }
.ovml-rank, .ovml-score { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums;
  text-align: right; font-size: var(--text-sm); }
.ovml-track { height: .7rem; border-radius: 99px; background: var(--border-color-primary); overflow: hidden; }
.ovml-fill { display: block; height: 100%; border-radius: 99px; background: var(--color-accent); }
.ovml-where { margin: 0; }
.ovml-where img { display: block; max-width: 100%; border-radius: var(--radius-lg); margin: 0; }
.ovml-where figcaption { margin-top: .5rem; line-height: 1.5; color: var(--body-text-color); }
.ovml-where figcaption .ovml-note { display: block; }
"""

NOT_RANKED_YET = '<p class="ovml-empty">Drop an image, choose labels, press Rank:<br>the ranking appears here.</p>'
NOT_FOUND_YET = '<p class="ovml-empty">Click a label of the ranking:<br>where it was found appears here.</p>'


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


def bars(ranking: Ranking) -> str:
    """The best labels as buttons with bars.

    The length of a bar is its share of the best score, 0 if the score is negative; a probability is the length itself.
    """
    best = 1.0 if ranking.probabilities else ranking.scores[0].score
    rows = []
    for rank, (label, score) in enumerate(ranking.scores[:SHOWN], start=1):
        share = min(max(score / best, 0), 1) if best > 0 else 0
        shown = f"{100 * score:.1f} %" if ranking.probabilities else f"{score:.3f}"
        rows.append(
            f'<li><button type="button" class="ovml-bar" data-rank="{rank}" aria-pressed="false">'
            f'<span class="ovml-rank">{rank}</span><span class="ovml-name">{escape(label)}</span>'
            f'<span class="ovml-track"><span class="ovml-fill" style="width: {100 * share:.1f}%"></span></span>'
            f'<span class="ovml-score">{shown}</span></button></li>'
        )
    number = len(ranking.scores)
    count = f"{number:,} labels" if number > 1 else "1 label"
    best_shown = f", the best {SHOWN} shown" if number > SHOWN else ""
    note = (
        f'<p class="ovml-note" role="status">{count} ranked{best_shown}. Click a label to see where it was found.</p>'
    )
    return f'{note}<ol class="ovml-bars" aria-label="labels, best first">{"".join(rows)}</ol>'


def where(image: Image.Image, grid: PatchGrid, found: LabelEvidence) -> str:
    """A label's heat map with what it shows."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Large images are reduced first: Pillow's filters take memory with the factor.
    shown = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC, reducing_gap=3.0)
    file = io.BytesIO()
    heat_map(shown, grid, found).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    label = escape(found.label)
    least, greatest = (f"{value:.3g}" for value in (found.similarity.min(), found.similarity.max()))
    patches = "the patch" if len(found.patches) == 1 else f"the {len(found.patches)} patches"
    return (
        f'<figure class="ovml-where"><img src="data:image/png;base64,{data}" width="{size[0]}" height="{size[1]}" '
        f'alt="Heat map of where {label} was found"><figcaption><strong>{label}</strong> '
        f'<span class="ovml-note">Light: patches like the label ({greatest}), dark: unlike it ({least}). Outlined: '
        f"{patches} of the local score. Score {found.score:.3f}, global {found.global_score:.3f}, "
        f"local {found.local_score:.3f}.</span></figcaption></figure>"
    )
