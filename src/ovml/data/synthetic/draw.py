"""Draws the objects and backgrounds of the demo's scenes with Pillow (see `ovml.data.synthetic.scenes`)."""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

IMAGE_SIZE = 72
_SCALE = 2  # drawn at twice the size, then averaged down

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "yellow": (240, 205, 40),
    "green": (50, 160, 70),
    "blue": (45, 95, 210),
    "purple": (130, 60, 175),
    "pink": (245, 135, 185),
    "white": (245, 245, 245),
    "black": (25, 25, 28),
}
"""Colour words and their RGB; each object's own colour is jittered around it."""

SHAPES = (
    "circle", "square", "triangle", "star", "heart", "cross",
    "ring", "moon", "drop", "flower", "bolt", "fish",
)  # fmt: skip
"""The shapes that can be drawn."""

PATTERNS = ("striped", "dotted", "checked")
"""Pattern words; a plain object has none."""

GROUNDS: dict[str, tuple[int, int, int]] = {
    "grey": (150, 150, 150),
    "sandy": (205, 185, 150),
    "teal": (105, 150, 150),
    "rosy": (190, 150, 145),
    "dusky": (90, 95, 120),
}
"""Background words and their RGB, muted so that most objects stand out."""

_Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        shape: One of `SHAPES`.
        colour: One of `COLOURS`.
        pattern: One of `PATTERNS`, or "" for a plain object.
        x: Centre from the left, in pixels of the final image.
        y: Centre from the top.
        radius: Half the object's extent.
        angle: Rotation in degrees.
    """

    shape: str
    colour: str
    pattern: str
    x: float
    y: float
    radius: float
    angle: float


def _polar(radii: list[float], turn: float = -90.0) -> _Points:
    step = 360 / len(radii)
    angles = [math.radians(turn + i * step) for i in range(len(radii))]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart(t: float) -> tuple[float, float]:
    return math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16.5


def _moon() -> _Points:
    outer = [math.radians(60 + 240 * i / 24) for i in range(25)]
    inner = [math.radians(295 - 230 * i / 24) for i in range(25)]
    return [(0.3 + math.cos(a), math.sin(a)) for a in outer] + [
        (0.68 + 0.75 * math.cos(a), 0.9 * math.sin(a)) for a in inner
    ]


def _fish() -> _Points:
    body = [math.radians(-150 + 300 * i / 24) for i in range(25)]
    outline = [(0.3 + 0.7 * math.cos(a), 0.55 * math.sin(a)) for a in body]
    return [*outline, (-1.0, 0.6), (-0.75, 0.0), (-1.0, -0.6)]


_ROUND = _polar([1.0] * 40)
_TURNS = [2 * math.pi * i / 40 for i in range(40)]
_OUTLINES: dict[str, _Points] = {
    "circle": _ROUND,
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)],
    "star": _polar([1.05, 0.45] * 5),
    "heart": [_heart(t) for t in _TURNS],
    "cross": [
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
        (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ],
    "ring": _ROUND,
    "moon": _moon(),
    "drop": [(0.95 * math.sin(t) * math.sin(t / 2) ** 1.5, -math.cos(t)) for t in _TURNS],
    "flower": _polar([0.76 + 0.27 * math.cos(2 * math.pi * i / 12) for i in range(60)]),
    "bolt": [(0.25, -1.05), (-0.6, 0.15), (-0.08, 0.15), (-0.3, 1.05), (0.65, -0.25), (0.1, -0.25)],
    "fish": _fish(),
}  # fmt: skip


def _placed(points: _Points, thing: Thing, grow: float = 1.0) -> _Points:
    cos, sin = math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle))
    size = thing.radius * grow * _SCALE
    return [
        (thing.x * _SCALE + size * (x * cos - y * sin), thing.y * _SCALE + size * (x * sin + y * cos))
        for x, y in points
    ]


def _jittered(colour: tuple[int, int, int], rng: random.Random, amount: float) -> tuple[int, int, int]:
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    hue = (hue + rng.uniform(-0.06, 0.06) * amount) % 1.0
    saturation = min(1.0, max(0.0, saturation * (1 + rng.uniform(-0.3, 0.2) * amount)))
    value = min(1.0, max(0.0, value * (1 + rng.uniform(-0.25, 0.2) * amount)))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _second_colour(colour: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    """A much lighter or darker companion, so that a pattern never adds a second colour word."""
    towards = 255 if sum(colour) < 330 else 0
    # Black and white move less: else striped black and striped white would look the same.
    weight = rng.uniform(0.3, 0.4) if max(colour) - min(colour) < 40 else rng.uniform(0.5, 0.7)
    red, green, blue = (round(c + (towards - c) * weight) for c in colour)
    return red, green, blue


def _pattern_mask(thing: Thing, rng: random.Random) -> np.ndarray:
    """Which pixels of the scene's canvas take the second colour."""
    side = IMAGE_SIZE * _SCALE
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    turn = math.radians(thing.angle + (rng.choice((0, 45, 90)) if thing.pattern == "striped" else 0))
    x, y = x - thing.x * _SCALE, y - thing.y * _SCALE
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    period = max(7.0, thing.radius * _SCALE * rng.uniform(0.45, 0.6))
    u, v = np.mod(u / period, 1), np.mod(v / period, 1)
    if thing.pattern == "striped":
        return np.asarray(u < 0.45)
    if thing.pattern == "checked":
        return np.asarray((u < 0.5) ^ (v < 0.5))
    return np.asarray((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.09)


def _draw_thing(canvas: Image.Image, thing: Thing, rng: random.Random) -> None:
    colour = _jittered(COLOURS[thing.colour], rng, 0.5)
    mask = Image.new("L", canvas.size)
    pen = ImageDraw.Draw(mask)
    pen.polygon(_placed(_OUTLINES[thing.shape], thing), fill=255)
    if thing.shape == "ring":
        pen.polygon(_placed(_ROUND, thing, 0.5), fill=0)
    canvas.paste(colour, (0, 0), mask)
    if thing.pattern:
        marks = Image.fromarray(_pattern_mask(thing, rng).astype(np.uint8) * np.asarray(mask))
        canvas.paste(_second_colour(colour, rng), (0, 0), marks)


def _background(ground: str, rng: random.Random) -> Image.Image:
    side = IMAGE_SIZE * _SCALE
    first, second = (np.array(_jittered(GROUNDS[ground], rng, 0.8), np.float32) for _ in range(2))
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    turn = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(turn) + y * math.sin(turn)
    kind = rng.choice(("gradient", "bands", "plain"))
    if kind == "gradient":
        blend = (along - along.min()) / (np.ptp(along) + 1e-6)
    elif kind == "bands":
        blend = 0.5 + 0.5 * np.sin(along * rng.uniform(12, 40))
    else:
        blend = np.zeros_like(along)
    pixels = first + (second - first) * blend[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _clutter(canvas: Image.Image, rng: random.Random) -> None:
    """Thin lines and specks that no label names."""
    pen, side = ImageDraw.Draw(canvas), IMAGE_SIZE * _SCALE
    for _ in range(rng.randint(0, 3)):
        ends = [rng.uniform(0, side) for _ in range(4)]
        pen.line(ends, fill=_jittered(rng.choice(list(COLOURS.values())), rng, 1.0), width=rng.randint(1, 3))
    for _ in range(rng.randint(0, 8)):
        x, y, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(1, 3.5)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=_jittered(rng.choice(list(COLOURS.values())), rng, 1.0))


def draw(things: tuple[Thing, ...], ground: str, rng: random.Random) -> Image.Image:
    """Draws one scene.

    Args:
        things: The objects, later ones on top of earlier ones.
        ground: The background's name, one of `GROUNDS`.
        rng: Source of the colour jitter, clutter and noise.

    Returns:
        An RGB image of ``IMAGE_SIZE`` by ``IMAGE_SIZE`` pixels.
    """
    canvas = _background(ground, rng)
    _clutter(canvas, rng)
    for thing in things:
        _draw_thing(canvas, thing, rng)
    pixels = np.asarray(canvas.reduce(_SCALE), np.float32)
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, rng.uniform(2, 14), pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def photograph(image: Image.Image, rng: random.Random) -> Image.Image:
    """Makes a drawing look like a snapshot of it: out of focus, in coloured, uneven light, with glare and haze.

    Args:
        image: The drawing, RGB.
        rng: Source of all choices.

    Returns:
        An RGB image of the same size.
    """
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    width, height = image.size
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    slope = rng.uniform(0.3, 0.9) * (math.cos(angle) * x + math.sin(angle) * y)
    light = rng.uniform(0.45, 0.9) * (1 + slope)[..., None] * [rng.uniform(0.65, 1.15) for _ in range(3)]
    distance = (x - rng.uniform(-0.5, 0.5)) ** 2 + (y - rng.uniform(-0.5, 0.5)) ** 2
    glare = rng.uniform(0.1, 0.55) * np.exp(-distance / (2 * rng.uniform(0.08, 0.25) ** 2))
    haze = rng.uniform(0, 0.25)
    pixels = np.asarray(image, np.float32) / 255 * light + glare[..., None] * [1.0, 0.95, 0.8]
    pixels = pixels * (1 - haze) + haze * 0.7
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))
