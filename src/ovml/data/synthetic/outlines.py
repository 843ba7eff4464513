"""Outlines of the demo's shapes, as polygons in a square from -1 to 1."""

from __future__ import annotations

import math

Points = list[tuple[float, float]]


def _polar(radii: list[float], turn: float = -90.0) -> Points:
    step = 360 / len(radii)
    angles = [math.radians(turn + i * step) for i in range(len(radii))]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart(t: float) -> tuple[float, float]:
    return math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16.5


def _moon() -> Points:
    outer = [math.radians(50 + 260 * i / 30) for i in range(31)]
    inner = [math.radians(280.5 - 201 * i / 24) for i in range(25)]
    return [(0.2 + math.cos(a), math.sin(a)) for a in outer] + [
        (0.7 + 0.78 * math.cos(a), 0.78 * math.sin(a)) for a in inner
    ]


def _fish() -> Points:
    body = [math.radians(-150 + 300 * i / 24) for i in range(25)]
    outline = [(0.3 + 0.7 * math.cos(a), 0.55 * math.sin(a)) for a in body]
    return [*outline, (-1.0, 0.6), (-0.75, 0.0), (-1.0, -0.6)]


CIRCLE = _polar([1.0] * 40)
_TURNS = [2 * math.pi * i / 40 for i in range(40)]
OUTLINES: dict[str, Points] = {
    "circle": CIRCLE,
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)],
    "star": _polar([1.05, 0.45] * 5),
    "heart": [_heart(t) for t in _TURNS],
    "cross": [
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
        (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ],
    "ring": CIRCLE,
    "moon": _moon(),
    "drop": [(0.95 * math.sin(t) * math.sin(t / 2) ** 1.5, -math.cos(t)) for t in _TURNS],
    "flower": _polar([0.6 + 0.42 * abs(math.cos(math.pi * i / 12)) ** 0.6 for i in range(72)]),
    "bolt": [(0.25, -1.05), (-0.6, 0.15), (-0.08, 0.15), (-0.3, 1.05), (0.65, -0.25), (0.1, -0.25)],
    "fish": _fish(),
}  # fmt: skip
