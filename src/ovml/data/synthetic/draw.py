"""Draws the objects and backgrounds of the demo's scenes with Pillow (see `ovml.data.synthetic.scenes`)."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ovml.data.synthetic.grounds import Colour, draw_ground, jittered, mixed
from ovml.data.synthetic.outlines import CIRCLE, OUTLINES, Points

IMAGE_SIZE = 128
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


# Light from above and a soft shadow, as masks that are resized to each object.
_LIGHT = Image.linear_gradient("L").transpose(Image.Transpose.FLIP_TOP_BOTTOM).point(lambda v: max(0, v - 110) * 0.45)
_SHADOW = Image.radial_gradient("L").point(lambda v: max(0, 150 - 1.2 * v))


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


def _placed(points: Points, thing: Thing, middle: float, grow: float = 1.0) -> Points:
    """The points of an object turned and scaled, around the middle of its own small canvas."""
    cos, sin = math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle))
    size = thing.radius * grow * _SCALE
    return [(middle + size * (x * cos - y * sin), middle + size * (x * sin + y * cos)) for x, y in points]


def _second_colour(colour: Colour, rng: random.Random) -> Colour:
    """A much lighter or darker companion, so that a pattern never adds a second colour word."""
    towards = (255, 255, 255) if sum(colour) < 330 else (0, 0, 0)
    # Black and white move less: else striped black and striped white would look the same.
    return mixed(colour, towards, rng.uniform(0.3, 0.4) if max(colour) - min(colour) < 40 else rng.uniform(0.5, 0.65))


def _pattern_mask(thing: Thing, side: int, rng: random.Random) -> Image.Image:
    """Where an object's own canvas takes the second colour."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) - side / 2
    turn = math.radians(thing.angle + (rng.choice((0, 45, 90)) if thing.pattern == "striped" else 0))
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    period = max(5.0 * _SCALE, thing.radius * _SCALE * rng.uniform(0.5, 0.65))
    u, v = np.mod(u / period + 0.25, 1), np.mod(v / period + 0.25, 1)
    if thing.pattern == "striped":
        where = u < 0.45
    elif thing.pattern == "checked":
        where = (u < 0.5) ^ (v < 0.5)
    else:
        where = (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.085
    return Image.fromarray(where.astype(np.uint8) * 255)


def _draw_thing(canvas: Image.Image, thing: Thing, horizon: float, rng: random.Random) -> None:
    """Draw an object with a darker edge and light from above, and its shadow if it stands on the ground."""
    colour = jittered(COLOURS[thing.colour], rng, 0.35)
    side = 2 * math.ceil(1.15 * thing.radius * _SCALE) + 4
    left, top = round(thing.x * _SCALE - side / 2), round(thing.y * _SCALE - side / 2)
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    contours = [_placed(OUTLINES[thing.shape], thing, side / 2)]
    pen.polygon(contours[0], fill=255)
    if thing.shape == "ring":
        contours.append(_placed(CIRCLE, thing, side / 2, 0.5))
        pen.polygon(contours[1], fill=0)
    own = Image.new("RGB", (side, side), colour)
    if thing.pattern:
        own.paste(_second_colour(colour, rng), (0, 0), _pattern_mask(thing, side, rng))
    own.paste((255, 255, 255), (0, 0), _LIGHT.resize((side, side)))
    edge = ImageDraw.Draw(own)
    for contour in contours:
        edge.line([*contour, *contour[:2]], mixed(colour, (0, 0, 0), 0.5), width=round(2.2 * _SCALE), joint="curve")
    if (foot := (thing.y + 0.92 * thing.radius) * _SCALE) > horizon:
        width, height = round(1.9 * thing.radius * _SCALE), round(0.6 * thing.radius * _SCALE)
        corner = round(thing.x * _SCALE - width / 2), round(foot - height / 2)
        canvas.paste((20, 22, 40), corner, _SHADOW.resize((width, height)))
    canvas.paste(own, (left, top), mask)


def draw(things: tuple[Thing, ...], ground: str, rng: random.Random) -> Image.Image:
    """Draws one scene.

    Args:
        things: The objects, later ones on top of earlier ones.
        ground: The background's name, one of `GROUNDS`.
        rng: Source of the colour jitter, the background's details and the noise.

    Returns:
        An RGB image of ``IMAGE_SIZE`` by ``IMAGE_SIZE`` pixels.
    """
    canvas, horizon = draw_ground(ground, IMAGE_SIZE * _SCALE, rng)
    for thing in things:
        _draw_thing(canvas, thing, horizon, rng)
    amount, shape = rng.uniform(0, 3), (IMAGE_SIZE, IMAGE_SIZE, 3)
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(shape, np.float32)
    return Image.fromarray((np.asarray(canvas.reduce(_SCALE)) + amount * noise).clip(0, 255).astype(np.uint8))


def photograph(image: Image.Image, rng: random.Random, strength: float = 1.0) -> Image.Image:
    """Makes a drawing look like a snapshot of it: out of focus, in coloured, uneven light, with glare and haze.

    Args:
        image: The drawing, RGB.
        rng: Source of all choices.
        strength: From 0, no change, to 1, a poor snapshot.

    Returns:
        An RGB image of the same size.
    """

    def factor(low: float, high: float) -> float:
        return 1 + (rng.uniform(low, high) - 1) * strength

    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0) * strength))
    width, height = image.size
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    slope = rng.uniform(0.3, 0.9) * strength * (math.cos(angle) * x + math.sin(angle) * y)
    light = factor(0.45, 0.9) * (1 + slope)[..., None] * [factor(0.65, 1.15) for _ in range(3)]
    distance = (x - rng.uniform(-0.5, 0.5)) ** 2 + (y - rng.uniform(-0.5, 0.5)) ** 2
    glare = rng.uniform(0.1, 0.55) * strength * np.exp(-distance / (2 * rng.uniform(0.08, 0.25) ** 2))
    haze = rng.uniform(0, 0.25) * strength
    pixels = np.asarray(image, np.float32) / 255 * light + glare[..., None] * [1.0, 0.95, 0.8]
    pixels = pixels * (1 - haze) + haze * 0.7
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))
