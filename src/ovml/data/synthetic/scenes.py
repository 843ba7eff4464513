"""A small synthetic data set with compositional labels, for demos and tests without downloads.

A scene shows one to six objects, each with a shape, a colour and perhaps a pattern, before a background with a
horizon. Objects nearer the bottom are larger, and in front of others. A label names a shape ("circle"), a coloured
shape ("red circle"), a patterned shape ("striped circle") or all three ("striped red circle"), and is present if any
object fits it.

There are two kinds of unseen labels: held-out combinations of words that do occur in other seen labels, and
every label of the shapes in `HELD_OUT_SHAPES`. Objects of unseen labels do appear in the images of the
supervised ``train`` split; only their labels are withheld, as in NUS-WIDE.

The demo's CLIP was trained on clean drawings (``pretrain``). Labelled scenes are busier and look like snapshots of
such drawings: a domain shift like that of a real data set.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property, partial

import datasets
from PIL import Image

from ovml.data.synthetic.draw import COLOURS, IMAGE_SIZE, PATTERNS, SHAPES, Thing, draw, photograph
from ovml.data.synthetic.drawn import check_split, drawn_split
from ovml.data.synthetic.grounds import GROUNDS

WORLD_VERSION = 2
"""Version of the drawing, part of the cache key; increase it when the same seed draws another scene."""

HELD_OUT_SHAPES = ("heart", "drop")
"""Shapes whose labels are all unseen."""

_COLOUR_NAMES = tuple(COLOURS)
# Held-out pairs are spread along a diagonal, so that every word still occurs in many seen labels.
_HELD_OUT_PAIRS = {(_COLOUR_NAMES[(3 * i + 1) % len(_COLOUR_NAMES)], shape) for i, shape in enumerate(SHAPES)} | {
    (PATTERNS[i // 2 % 3], shape) for i, shape in enumerate(SHAPES) if i % 2 == 0
}
_TRIPLES = tuple(
    (PATTERNS[(i + j) % 3], _COLOUR_NAMES[(i * 5 + j * 3 + 2) % len(_COLOUR_NAMES)], shape)
    for i, shape in enumerate(SHAPES)
    for j in range(2)
)
_HELD_OUT_TRIPLES = set(_TRIPLES[1::5])


def _is_held_out(words: tuple[str, ...]) -> bool:
    shape = words[-1]
    return (
        shape in HELD_OUT_SHAPES
        or any((word, shape) in _HELD_OUT_PAIRS for word in words[:-1])
        or words in _HELD_OUT_TRIPLES
    )


_NAMES: tuple[tuple[str, ...], ...] = (
    *((shape,) for shape in SHAPES),
    *((colour, shape) for shape in SHAPES for colour in COLOURS),
    *((pattern, shape) for shape in SHAPES for pattern in PATTERNS),
    *_TRIPLES,
)

SEEN_LABELS: tuple[str, ...] = tuple(" ".join(words) for words in _NAMES if not _is_held_out(words))
"""Labels used in supervised training."""

UNSEEN_LABELS: tuple[str, ...] = tuple(" ".join(words) for words in _NAMES if _is_held_out(words))
"""Labels withheld from supervised training."""

LABELS: tuple[str, ...] = SEEN_LABELS + UNSEEN_LABELS
"""All labels; a label's id is its position here."""

_IDS = {label: i for i, label in enumerate(LABELS)}
# Pre-training images hold few objects, as the web's captioned images do.
_COUNT_WEIGHTS = {"pretrain": (34, 18, 14, 13, 11, 10)}
_BUSY_WEIGHTS = (3, 12, 25, 25, 20, 15)
_MIN_DISTANCE = 0.75  # of two objects, in sums of their radii: they may overlap a little
_STRENGTH = 0.75  # of the look of a snapshot


@dataclass(frozen=True)
class Scene:
    """A drawn scene and what is in it.

    Attributes:
        image: The image, RGB, ``IMAGE_SIZE`` pixels square.
        objects: The objects, later ones on top of earlier ones.
        ground: The background's name.
    """

    image: Image.Image
    objects: tuple[Thing, ...]
    ground: str

    @cached_property
    def label_ids(self) -> list[int]:
        """Ids into `LABELS` of the labels that some object fits, ascending."""
        names = {name for thing in self.objects for name in object_names(thing)}
        return sorted(_IDS[name] for name in names if name in _IDS)


def object_names(thing: Thing) -> list[str]:
    """The names that fit an object, whether or not each is a label.

    Args:
        thing: The object.

    Returns:
        Its shape and every combination of the shape with its colour and pattern, shortest first.

    Examples:
        >>> object_names(Thing("circle", "red", "striped", 10.0, 10.0, 8.0, 0.0))
        ['circle', 'red circle', 'striped circle', 'striped red circle']
    """
    names = [thing.shape, f"{thing.colour} {thing.shape}"]
    if thing.pattern:
        names += [f"{thing.pattern} {thing.shape}", f"{thing.pattern} {thing.colour} {thing.shape}"]
    return names


def _looks(rng: random.Random) -> tuple[str, str, str]:
    """Draw pattern, colour and shape; three-word labels are drawn more often, or each would be too rare."""
    if rng.random() < 0.3:
        return rng.choice(_TRIPLES)
    pattern = rng.choice(PATTERNS) if rng.random() < 0.45 else ""
    return pattern, rng.choice(_COLOUR_NAMES), rng.choice(SHAPES)


def _place(count: int, rng: random.Random) -> tuple[Thing, ...]:
    things: list[Thing] = []
    largest = (0.29, 0.25, 0.215, 0.195, 0.175, 0.16)[count - 1] * IMAGE_SIZE
    for _ in range(count):
        pattern, colour, shape = _looks(rng)
        size = rng.uniform(0.7, 1.0) * largest
        for _attempt in range(30):
            y = rng.uniform(0.15, 0.88)
            radius = size * (0.75 + 0.45 * y)  # what stands higher is farther away
            x, y = rng.uniform(0.9 * radius, IMAGE_SIZE - 0.9 * radius), y * IMAGE_SIZE
            near = (math.hypot(t.x - x, t.y - y) < _MIN_DISTANCE * (t.radius + radius) for t in things)
            if not any(near):
                things.append(Thing(shape, colour, pattern, x, y, radius, rng.uniform(-30, 30)))
                break
    return tuple(sorted(things, key=lambda thing: thing.y))  # objects without room are skipped


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """Draw a scene, a deterministic function of the three arguments.

    Args:
        seed: Seed of the data set.
        split: One of `ovml.data.synthetic.drawn.SPLITS`.
        index: Position of the scene in its split.

    Returns:
        The scene.

    Raises:
        ValueError: If ``split`` is not a split of this data set.

    Examples:
        >>> scene = draw_scene(0, "train", 3)
        >>> scene.image.size, len(scene.objects) >= 1
        ((128, 128), True)
    """
    check_split(split)
    rng = random.Random(f"{WORLD_VERSION}/{seed}/{split}/{index}")
    count = rng.choices(range(1, 7), _COUNT_WEIGHTS.get(split, _BUSY_WEIGHTS))[0]
    things = _place(count, rng)
    ground = rng.choice(list(GROUNDS))
    image = draw(things, ground, rng)
    return Scene(image if split == "pretrain" else photograph(image, rng, _STRENGTH), things, ground)


def scenes(split: str, size: int, seed: int, cache_dir: str | None = None) -> datasets.Dataset:
    """Draw a split, or read it from the cache.

    Args:
        split: One of `ovml.data.synthetic.drawn.SPLITS`.
        size: Number of scenes; a larger size continues the same stream of scenes.
        seed: Seed of the data set.
        cache_dir: Folder for the Arrow files; the ``datasets`` library's own by default.

    Returns:
        Memory-mapped rows: ``image``, ``positive`` (ids into `LABELS`), ``negative`` (always empty: labels
        not listed are absent) and ``image_id``.

    Raises:
        ValueError: If ``split`` is not a split of this data set or ``size`` is not positive.
    """
    fingerprint = f"ovml-demo-{WORLD_VERSION}-{split}-{size}-{seed}"
    return drawn_split(partial(draw_scene, seed, split), split, size, fingerprint, cache_dir)
