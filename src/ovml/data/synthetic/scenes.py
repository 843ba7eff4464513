"""A small drawn world with a vocabulary of compositional labels, for demos and tests without downloads.

A scene shows one to six objects, each with a shape, a colour and perhaps a pattern, on a cluttered
background. A label names a shape ("circle"), a coloured shape ("red circle"), a patterned shape ("striped
circle") or all three ("striped red circle"), and is present when any object fits it.

There are two kinds of unseen labels: held-out combinations of words that do occur in other seen labels, and
every label of the shapes in `HELD_OUT_SHAPES`. Objects of unseen labels do appear in the pictures of the
supervised ``train`` split; only their labels are to be withheld, as in NUS-WIDE.

The demo's CLIP was trained on clean drawings (``pretrain``). Labelled scenes are busier and look like snapshots of
such drawings, so they differ from what CLIP saw, as the pictures of a real data set do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property, partial

import datasets
from PIL import Image

from ovml.data.synthetic.draw import COLOURS, GROUNDS, IMAGE_SIZE, PATTERNS, SHAPES, Thing, draw, photograph
from ovml.data.synthetic.drawn import check_split, drawn_split

WORLD_VERSION = 1
"""Raised whenever the same seed would draw another scene; part of the cache's key."""

HELD_OUT_SHAPES = ("heart", "drop")
"""Shapes of which every label is unseen."""

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
"""Labels whose marks supervised training may use."""

UNSEEN_LABELS: tuple[str, ...] = tuple(" ".join(words) for words in _NAMES if _is_held_out(words))
"""Labels withheld from supervised training."""

LABELS: tuple[str, ...] = SEEN_LABELS + UNSEEN_LABELS
"""All labels; a label's id is its position here."""

_IDS = {label: i for i, label in enumerate(LABELS)}
# Pre-training pictures hold few objects, as the web's captioned pictures do.
_COUNT_WEIGHTS = {"pretrain": (30, 22, 18, 14, 9, 7)}
_BUSY_WEIGHTS = (5, 15, 20, 20, 20, 20)


@dataclass(frozen=True)
class Scene:
    """A drawn scene and what is in it.

    Attributes:
        image: The picture, RGB, ``IMAGE_SIZE`` pixels square.
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
    """Pattern, colour and shape; the three-word labels are drawn more often, or each would be too rare."""
    if rng.random() < 0.3:
        return rng.choice(_TRIPLES)
    pattern = rng.choice(PATTERNS) if rng.random() < 0.45 else ""
    return pattern, rng.choice(_COLOUR_NAMES), rng.choice(SHAPES)


def _place(count: int, rng: random.Random) -> tuple[Thing, ...]:
    things: list[Thing] = []
    largest = (22.0, 19.0, 16.0, 14.0, 13.0, 12.5)[count - 1]
    for _ in range(count):
        pattern, colour, shape = _looks(rng)
        radius = rng.uniform(0.65, 1.0) * largest
        for _attempt in range(30):
            x, y = (rng.uniform(0.85 * radius, IMAGE_SIZE - 0.85 * radius) for _ in range(2))
            if all((t.x - x) ** 2 + (t.y - y) ** 2 > (0.85 * (t.radius + radius)) ** 2 for t in things):
                things.append(Thing(shape, colour, pattern, x, y, radius, rng.uniform(-35, 35)))
                break
    return tuple(things)  # an object that finds no room is left out


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """Draws a scene, a function of the three arguments alone.

    Args:
        seed: Seed of the world.
        split: One of `ovml.data.synthetic.drawn.SPLITS`.
        index: Position of the scene in its split.

    Returns:
        The scene.

    Raises:
        ValueError: If ``split`` is not a split of this world.

    Examples:
        >>> scene = draw_scene(0, "train", 3)
        >>> scene.image.size, len(scene.objects) >= 1
        ((72, 72), True)
    """
    check_split(split)
    rng = random.Random(f"{WORLD_VERSION}/{seed}/{split}/{index}")
    count = rng.choices(range(1, 7), _COUNT_WEIGHTS.get(split, _BUSY_WEIGHTS))[0]
    things = _place(count, rng)
    ground = rng.choice(list(GROUNDS))
    image = draw(things, ground, rng)
    return Scene(image if split == "pretrain" else photograph(image, rng), things, ground)


_CAPTIONS = (
    "{things}",
    "{things}",
    "there is {things} in the scene",
    "there is {things} in the scene",
    "{things} in the scene",
    "a picture of {things}",
    "a photo of {things}",
    "a drawing with {things}",
    "{things} on a {ground} background",
    "a {ground} picture with {things}",
)


def caption(scene: Scene, rng: random.Random) -> str:
    """Writes a caption as the web would: true, in varied words, and silent about much of the picture.

    Args:
        scene: The scene to describe.
        rng: Source of the choices.

    Returns:
        Lower-case text that mentions one to three objects, each by one of its names, perhaps with the
        background, or now and then a single bare word.
    """
    if rng.random() < 0.04:
        thing = rng.choice(scene.objects)
        return rng.choice((thing.shape, thing.colour, scene.ground))
    mentioned = rng.sample(scene.objects, min(len(scene.objects), rng.choices((1, 2, 3), (4, 4, 2))[0]))
    phrases = []
    for thing in mentioned:
        names = object_names(thing)
        # People say what is striking: colour and shape most of the time, the bare shape less often.
        weights = (2, 5) if len(names) == 2 else (1, 2, 2, 4)
        phrases.append("a " + rng.choices(names, weights)[0])
    things = phrases[0] if len(phrases) == 1 else f"{' '.join(phrases[:-1])} and {phrases[-1]}"
    return rng.choice(_CAPTIONS).format(things=things, ground=scene.ground)


def scenes(split: str, size: int, seed: int, cache_dir: str | None = None) -> datasets.Dataset:
    """Draws a split, or reads it from the cache where it was drawn before.

    Args:
        split: One of `ovml.data.synthetic.drawn.SPLITS`.
        size: Number of scenes; a larger size continues the same stream of scenes.
        seed: Seed of the world.
        cache_dir: Folder for the Arrow files; the ``datasets`` library's own by default.

    Returns:
        Memory-mapped rows: ``image``, ``positive`` (ids into `LABELS`), ``negative`` (always empty: what
        is not positive is absent) and ``image_id``.

    Raises:
        ValueError: If ``split`` is not a split of this world or ``size`` is not positive.
    """
    fingerprint = f"ovml-demo-{WORLD_VERSION}-{split}-{size}-{seed}"
    return drawn_split(partial(draw_scene, seed, split), split, size, fingerprint, cache_dir)
