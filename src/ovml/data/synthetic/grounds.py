"""Draws the backgrounds of the demo's scenes: a sky and a land, or a wall and a floor."""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Ground:
    """Colours of a background.

    Attributes:
        sky: RGB at the top of the image and at the horizon.
        land: RGB at the horizon and at the bottom of the image.
        hills: RGB of what stands on the horizon; `None` for a bare one.
        kind: What is drawn on the land: `tufts`, `waves` or `planks`.
    """

    sky: tuple[Colour, Colour]
    land: tuple[Colour, Colour]
    hills: Colour | None
    kind: str


GROUNDS: dict[str, Ground] = {
    "meadow": Ground(((150, 196, 232), (222, 238, 240)), ((158, 190, 128), (112, 152, 92)), (142, 176, 150), "tufts"),
    "desert": Ground(((238, 200, 150), (250, 232, 200)), ((226, 196, 148), (200, 160, 110)), (212, 168, 126), "tufts"),
    "beach": Ground(((142, 200, 222), (226, 240, 236)), ((232, 218, 184), (214, 192, 148)), None, "waves"),
    "snow": Ground(((168, 184, 210), (224, 230, 240)), ((228, 234, 242), (198, 210, 226)), (178, 192, 212), "tufts"),
    "dusk": Ground(((82, 80, 130), (214, 160, 160)), ((108, 112, 126), (74, 80, 102)), (96, 90, 124), "tufts"),
    "room": Ground(((214, 204, 196), (230, 222, 212)), ((190, 158, 128), (156, 122, 94)), None, "planks"),
}
"""Background words and their colours, muted so that objects stand out."""


def jittered(colour: Colour, rng: random.Random, amount: float) -> Colour:
    """A colour near another one: hue, saturation and brightness differ by up to `amount`, 0 to 1."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    hue = (hue + rng.uniform(-0.06, 0.06) * amount) % 1.0
    saturation = min(1.0, max(0.0, saturation * (1 + rng.uniform(-0.3, 0.2) * amount)))
    value = min(1.0, max(0.0, value * (1 + rng.uniform(-0.25, 0.2) * amount)))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """A colour between two others; `share` is the second's."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def draw_ground(name: str, side: int, rng: random.Random) -> tuple[Image.Image, float]:
    """Draw a background.

    Args:
        name: One of `GROUNDS`.
        side: Side of the image in pixels.
        rng: Source of all choices.

    Returns:
        An RGB image, and where its horizon is, in pixels from the top.
    """
    ground = GROUNDS[name]
    sky, land = (tuple(jittered(c, rng, 0.45) for c in pair) for pair in (ground.sky, ground.land))
    horizon = rng.uniform(0.3, 0.55) * side
    stops = [0, horizon - 1, horizon, side]
    column = [np.interp(np.arange(side), stops, channel) for channel in zip(*sky, *land, strict=True)]
    pixels = np.broadcast_to(np.stack(column, -1)[:, None], (side, side, 3))
    canvas = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))
    pen = ImageDraw.Draw(canvas)
    if ground.kind == "planks":
        _draw_room(pen, sky, land, side, horizon, rng)
        return canvas, horizon
    for _ in range(rng.randint(0, 3)):
        _draw_cloud(pen, mixed(sky[0], (255, 255, 255), 0.55), side, horizon, rng)
    if ground.hills is not None:
        hills = jittered(ground.hills, rng, 0.45)
        _draw_hills(pen, mixed(hills, sky[1], 0.5), side, horizon, rng.uniform(0.1, 0.22), rng)
        _draw_hills(pen, hills, side, horizon, rng.uniform(0.03, 0.12), rng)
    if ground.kind == "waves":
        _draw_sea(pen, sky, side, horizon, rng)
    for _ in range(rng.randint(10, 40)):
        _draw_tuft(pen, land, side, horizon, rng)
    return canvas, horizon


def _draw_cloud(pen: ImageDraw.ImageDraw, colour: Colour, side: int, horizon: float, rng: random.Random) -> None:
    x, y, width = rng.uniform(0, side), rng.uniform(0.05, 0.7) * horizon, rng.uniform(0.06, 0.12) * side
    for shift in (-0.9, -0.2, 0.6, 1.1):
        w, h = width * rng.uniform(0.6, 1.0), width * rng.uniform(0.2, 0.4)
        pen.ellipse((x + shift * width - w, y - h, x + shift * width + w, y + h), fill=colour)


def _draw_hills(
    pen: ImageDraw.ImageDraw, colour: Colour, side: int, horizon: float, height: float, rng: random.Random
) -> None:
    waves = [(rng.uniform(2, 5), rng.uniform(0, 2 * math.pi)), (rng.uniform(5, 11), rng.uniform(0, 2 * math.pi))]
    tops = []
    for x in range(0, side + 4, 4):
        (f1, p1), (f2, p2) = waves
        up = 0.5 + 0.35 * math.sin(f1 * x / side + p1) + 0.15 * math.sin(f2 * x / side + p2)
        tops.append((float(x), horizon - height * side * up))
    pen.polygon([*tops, (side, horizon), (0, horizon)], fill=colour)


def _draw_sea(pen: ImageDraw.ImageDraw, sky: tuple[Colour, ...], side: int, horizon: float, rng: random.Random) -> None:
    water = mixed(sky[0], (60, 130, 160), 0.5)
    depth = rng.uniform(0.08, 0.18) * side
    phase = rng.uniform(0, 6)
    shore = [(float(x), horizon + depth + 0.02 * side * math.sin(9 * x / side + phase)) for x in range(0, side + 4, 4)]
    pen.polygon([(0, horizon), *shore, (side, horizon)], fill=water)
    pen.line(shore, fill=mixed(water, (255, 255, 255), 0.7), width=max(1, side // 85))
    for _ in range(rng.randint(3, 9)):
        x, y, length = rng.uniform(0, side), horizon + rng.uniform(0.1, 0.85) * depth, rng.uniform(0.04, 0.12) * side
        pen.line((x, y, x + length, y), fill=mixed(water, (255, 255, 255), 0.3), width=max(1, side // 128))


def _draw_tuft(
    pen: ImageDraw.ImageDraw, land: tuple[Colour, ...], side: int, horizon: float, rng: random.Random
) -> None:
    """A small mark on the land, smaller with distance."""
    near = rng.uniform(0.05, 1) ** 0.7
    x, y = rng.uniform(0, side), horizon + (side - horizon) * near
    size = (0.004 + 0.014 * near) * side
    shade = mixed(land[1], rng.choice(((0, 0, 0), (255, 255, 255))), rng.uniform(0.08, 0.22))
    for lean in (-1, 0, 1):
        pen.line((x, y, x + lean * size, y - 1.6 * size), fill=shade, width=max(1, round(0.4 * size)))


def _draw_room(
    pen: ImageDraw.ImageDraw,
    wall: tuple[Colour, ...],
    floor: tuple[Colour, ...],
    side: int,
    horizon: float,
    rng: random.Random,
) -> None:
    """Stripes on the wall, a skirting board, and planks that meet far away."""
    stripe, width = mixed(wall[0], wall[1], rng.uniform(0.3, 1.2)), rng.uniform(0.04, 0.1) * side
    for i in range(0, math.ceil(side / width), 2):
        pen.rectangle((i * width, 0, (i + 1) * width, horizon), fill=stripe)
    middle, seam = rng.uniform(0.2, 0.8) * side, mixed(floor[1], (0, 0, 0), 0.18)
    for i in range(-14, 15):
        pen.line(
            (middle + i * 0.05 * side, horizon, middle + i * 0.22 * side, side), fill=seam, width=max(1, side // 128)
        )
    pen.rectangle((0, horizon - 0.03 * side, side, horizon), fill=mixed(wall[1], (255, 255, 255), 0.5))
