"""Figure that shows where in an image its best labels are found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ovml.inference.patches import Array, LabelEvidence, PatchGrid, find_labels
from ovml.inference.tagger import Tagger
from ovml.model import OpenVocabularyModel
from ovml.prompts import PromptLearner
from ovml.utils.errors import UserError
from ovml.utils.images import ImageLike, load_image
from ovml.vocabulary import LabelVocabulary

CELL, GAP, MARGIN = 280, 24, 20
LABEL_LINE, LINE = 22, 18
INK, FAINT, PAPER = (25, 25, 30), (105, 105, 115), (255, 255, 255)
HEAT = ((15, 10, 50), (90, 20, 115), (190, 55, 85), (248, 145, 15), (252, 253, 160))
"""Evenly spaced colours from the minimum to the maximum similarity; brightness increases, for greyscale prints."""
HEAT_WEIGHT = 0.55
"""Share of the heat map's colour in a pixel; the rest is the image in grey."""
FADED = 0.3
"""Share of the image in pixels outside the patches; the rest is white."""

Font = Any  # FreeTypeFont, or Pillow's bitmap font


def explain(
    model: OpenVocabularyModel,
    image: ImageLike,
    labels: Sequence[str] | LabelVocabulary | None = None,
    top_k: int = 8,
    prompt: PromptLearner | str | Sequence[str] | None = None,
    font: str | Path | None = None,
    allow_urls: bool = False,
) -> Image.Image:
    """Draw a figure with a heat map, the best patches and the scores of each label.

    Args:
        model: Scores the image.
        image: An image of any kind; see `ovml.utils.images.load_image`.
        labels: Any names. Default: the model's vocabulary.
        top_k: Number of labels drawn, best first; all labels are scored.
        prompt: Replaces the model's own prompt; see `Tagger`.
        font: A TrueType file, for labels in a script that Pillow's own font lacks.
        allow_urls: See `Tagger`.

    Raises:
        UserError: The image or the font cannot be read, or the labels are invalid.

    Example:
        >>> from ovml.model import OpenVocabularyModel
        >>> model = OpenVocabularyModel("ovml-demo")
        >>> explain(model, Image.new("RGB", (80, 60), "red"), ["red circle", "blue star"]).mode
        'RGB'
    """
    tagger = Tagger(model, labels, top_k=top_k, num_workers=0, prompt=prompt)
    rgb = load_image(image, allow_urls=allow_urls)
    grid, evidence = find_labels(tagger, rgb, tagger.top_k)
    return draw_explanation(rgb, grid, evidence, font)


def draw_explanation(
    image: Image.Image, grid: PatchGrid, evidence: Sequence[LabelEvidence], font: str | Path | None = None
) -> Image.Image:
    """Draw the figure: the image, then a heat map with the best patches and scores for each label.

    Args:
        image: RGB.
        grid: Position of the patches.
        evidence: The labels, in the order to draw.
        font: See `explain`.

    Raises:
        UserError: The font cannot be read.
    """
    large, small = _font(font, 17), _font(font, 13)
    scale = CELL / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    shown = image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    columns = min(1 + len(evidence), 3)
    lines = [_wrap(f"{rank}. {found.label}", large, CELL) for rank, found in enumerate(evidence, start=1)]
    caption_height = max([8 + LINE * 4, *(8 + LABEL_LINE * len(label) + 2 * LINE for label in lines)])
    cell_height = height + caption_height
    rows = -(-(1 + len(evidence)) // columns)
    size = (2 * MARGIN + columns * (CELL + GAP) - GAP, 2 * MARGIN + rows * (cell_height + GAP) - GAP)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for position in range(1 + len(evidence)):
        left = MARGIN + position % columns * (CELL + GAP)
        top = MARGIN + position // columns * (cell_height + GAP)
        place = left + (CELL - width) // 2, top
        if position == 0:
            canvas.paste(_cropped_area_faded(shown, grid), place)
            _legend(draw, left, top + height + 8, grid, evidence, (large, small))
        else:
            found = evidence[position - 1]
            canvas.paste(heat_map(shown, grid, found), place)
            _caption(canvas, left, top + height + 8, lines[position - 1], found, (large, small))
    return canvas


def _font(path: str | Path | None, size: int) -> Font:
    if path is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(str(path), size)
    except OSError as error:
        raise UserError(f"{path}: not a font that Pillow can read; give a .ttf or .otf file") from error


def _cropped_area_faded(shown: Image.Image, grid: PatchGrid) -> Image.Image:
    inside = np.isfinite(grid.spread(np.zeros(grid.side**2), shown.size))
    return _faded(np.asarray(shown).astype(np.float64), ~inside)


def _faded(pixels: Array, outside: Array) -> Image.Image:
    pixels[outside] = FADED * pixels[outside] + (1 - FADED) * 255
    return Image.fromarray(pixels.round().astype(np.uint8))


def heat_map(shown: Image.Image, grid: PatchGrid, found: LabelEvidence) -> Image.Image:
    """Draw a label's similarity to the patches over the image, and outline the best patches.

    Args:
        shown: RGB, of any size.
        grid: Position of the patches.
        found: The label.
    """
    heat = grid.spread(found.similarity, shown.size)
    minimum, maximum = found.similarity.min(), found.similarity.max()
    inside = np.isfinite(heat)
    pixels = np.asarray(shown.convert("L")).astype(np.float64)[..., None].repeat(3, axis=2)
    colours = heat_colours((heat[inside] - minimum) / max(maximum - minimum, 1e-12))
    pixels[inside] = (1 - HEAT_WEIGHT) * pixels[inside] + HEAT_WEIGHT * colours
    image = _faded(pixels, ~inside)
    _outline(ImageDraw.Draw(image), shown.size, grid, found.patches)
    return image


def heat_colours(values: Array) -> Array:
    """Colours `[..., 3]` in 0..255 of values in 0..1.

    >>> heat_colours(np.array([0.0, 1.0])).tolist()
    [[15.0, 10.0, 50.0], [252.0, 253.0, 160.0]]
    """
    steps = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, steps, channel) for channel in zip(*HEAT, strict=True)], axis=-1)


def _outline(draw: ImageDraw.ImageDraw, size: tuple[int, int], grid: PatchGrid, patches: Sequence[int]) -> None:
    """Draw the outer border of patches."""
    chosen = {divmod(patch, grid.side) for patch in patches}
    lines = []
    for patch in patches:
        row, column = divmod(patch, grid.side)
        box = grid.patch_box(patch)
        x0, x1 = (min(max(x * size[0] / grid.size[0], 1.0), size[0] - 3) for x in box[::2])
        y0, y1 = (min(max(y * size[1] / grid.size[1], 1.0), size[1] - 3) for y in box[1::2])
        sides = {
            (row - 1, column): (x0, y0, x1, y0),
            (row + 1, column): (x0, y1, x1, y1),
            (row, column - 1): (x0, y0, x0, y1),
            (row, column + 1): (x1, y0, x1, y1),
        }
        lines += [[round(at) for at in line] for neighbour, line in sides.items() if neighbour not in chosen]
    for colour, thickness in ((INK, 4), (PAPER, 2)):  # legible on light and on dark
        before, after = (thickness - 1) // 2, thickness // 2
        for x0, y0, x1, y1 in lines:
            draw.rectangle((x0 - before, y0 - before, x1 + after, y1 + after), fill=colour)


def _legend(
    draw: ImageDraw.ImageDraw,
    left: int,
    top: int,
    grid: PatchGrid,
    evidence: Sequence[LabelEvidence],
    fonts: tuple[Font, Font],
) -> None:
    large, small = fonts
    draw.text((left, top), "image", INK, large)
    count = len(evidence[0].patches) if evidence else 0
    lines = [
        f"heat: {grid.side} x {grid.side} patches' similarity to a label",
        "outlined: the patch of the local score" if count == 1 else f"outlined: the {count} patches of the local score",
    ]
    if grid.crops:
        lines.append("faded: cropped, not seen by the model")
    for number, line in enumerate(lines):
        draw.text((left, top + LABEL_LINE + LINE * number), _fit(line, small, CELL), FAINT, small)


def _caption(
    canvas: Image.Image, left: int, top: int, label: Sequence[str], found: LabelEvidence, fonts: tuple[Font, Font]
) -> None:
    large, small = fonts
    draw = ImageDraw.Draw(canvas)
    for line in label:
        draw.text((left, top), line, INK, large)
        top += LABEL_LINE
    scores = f"score {found.score:.3f}   global {found.global_score:.3f}   local {found.local_score:.3f}"
    draw.text((left, top), _fit(scores, small, CELL), FAINT, small)
    minimum, maximum = (f"{value:.3g}" for value in (found.similarity.min(), found.similarity.max()))
    draw.text((left, top + LINE), minimum, FAINT, small)
    start = left + round(small.getlength(minimum)) + 6
    bar = heat_colours(np.linspace(0, 1, 100))[None].repeat(8, axis=0)
    canvas.paste(Image.fromarray(bar.round().astype(np.uint8)), (start, top + LINE + 5))
    draw.text((start + 106, top + LINE), maximum, FAINT, small)


def _wrap(text: str, font: Font, width: int, max_lines: int = 2) -> list[str]:
    """Break text into lines of a maximum width; the last one is shortened if it is too long.

    >>> _wrap("a b", ImageFont.load_default(10), 8)
    ['a', 'b']
    """
    lines: list[str] = []
    for word in text.split():
        if lines and (len(lines) == max_lines or font.getlength(f"{lines[-1]} {word}") <= width):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [_fit(line, font, width) for line in lines]


def _fit(text: str, font: Font, width: int) -> str:
    """Shorten text with three dots if it is wider than `width`."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."
