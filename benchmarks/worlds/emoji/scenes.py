"""A harder drawn world: scenes of emoji, over a thousand names.

A scene shows one to six emoji, turned, mirrored and scaled, in a jittered grid on gradients, noise and clutter. Its
labels are their names (`emoji_names`). Objects of unseen labels do appear in the pictures of the ``train``
split; only their labels are to be withheld, as in NUS-WIDE.

Pictures come from a font or folder (`emoji_pictures`), so test scenes can be drawn in a style that no
training scene has. Scenes of one seed, split and index show the same objects in the same places in every style.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from dataclasses import dataclass
from functools import cached_property, partial

import datasets
import numpy as np
from PIL import Image, ImageDraw

from ovml.data.synthetic.draw import photograph
from ovml.data.synthetic.drawn import check_split, drawn_split
from worlds.emoji.pictures import EmojiPictures

EMOJI_WORLD_VERSION = 1
"""Raised whenever the same seed would draw another scene; part of the cache's key."""

IMAGE_SIZE = 72
"""Side of a scene in pixels."""

_COUNT_WEIGHTS = {"pretrain": (30, 22, 18, 14, 9, 7)}
_BUSY_WEIGHTS = (5, 15, 20, 20, 20, 20)
_GRIDS = ((1, 1), (2, 1), (2, 2), (2, 2), (3, 2), (3, 2))
# The mirror image of these is another emoji, or false: a left arrow, a waxing moon, a play button.
_HANDED = re.compile(r"left|right|clockwise|waxing|waning|quarter moon|button|track|arrow")


@dataclass(frozen=True)
class EmojiThing:
    """One object of a scene.

    Attributes:
        label_id: Position of its name in the world's names.
        x: Centre from the left, in pixels.
        y: Centre from the top.
        size: Side of its picture before it is turned, in pixels.
        angle: Rotation in degrees, against the clock.
        mirrored: Whether left and right are swapped; never where the mirror image has another name.
    """

    label_id: int
    x: float
    y: float
    size: int
    angle: float
    mirrored: bool


@dataclass(frozen=True)
class EmojiScene:
    """A drawn scene and what is in it.

    Attributes:
        image: The picture, RGB, `IMAGE_SIZE` pixels square.
        objects: The objects, all different, later ones on top of earlier ones.
    """

    image: Image.Image
    objects: tuple[EmojiThing, ...]

    @cached_property
    def label_ids(self) -> list[int]:
        """Ids of the names of its objects, ascending."""
        return sorted(thing.label_id for thing in self.objects)


@dataclass(frozen=True)
class EmojiWorld:
    """Draws scenes of some emoji in one style.

    Args:
        names: Of the emoji; a label's id is its position.
        pictures: One for each name.
        seed: Of the scenes.

    Raises:
        ValueError: There is not one picture for each name, or none at all.

    Example:
        >>> from pathlib import Path
        >>> pixels = np.full((2, 40, 40, 4), 255, dtype=np.uint8)
        >>> squares = EmojiPictures(pixels, np.ones(2, dtype=bool), Path("."))
        >>> scene = EmojiWorld(("white square", "blank"), squares).scene("train", 3)
        >>> scene.image.size, scene.label_ids
        ((72, 72), [0, 1])
    """

    names: tuple[str, ...]
    pictures: EmojiPictures
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.names) != len(self.pictures.present) or not self.pictures.present.any():
            found = f"{int(self.pictures.present.sum())} of {len(self.pictures.present)}"
            raise ValueError(f"pictures: one is needed for each of {len(self.names)} names; got {found}")

    def scene(self, split: str, index: int) -> EmojiScene:
        """Draw a scene, a function of the arguments, the seed, the names and the pictures alone.

        Args:
            split: One of `ovml.data.synthetic.drawn.SPLITS`.
            index: Position of the scene in its split.

        Raises:
            ValueError: If `split` is not a split of this world.
        """
        check_split(split)
        key = f"{EMOJI_WORLD_VERSION}/{self.seed}/{split}/{index}"
        # Streams of their own, so that a style without one of the pictures changes nothing else of the scene.
        objects = self._place(split, random.Random(f"{key}/what"), random.Random(f"{key}/where"))
        rng = random.Random(f"{key}/ground")
        canvas = _background(rng)
        for thing in objects:
            self._paste(canvas, thing)
        pixels = np.asarray(canvas, np.float32)
        noise = np.random.default_rng(rng.getrandbits(64)).normal(0, rng.uniform(1, 8), pixels.shape)
        image = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
        return EmojiScene(image if split == "pretrain" else photograph(image, rng), objects)

    def _place(self, split: str, what: random.Random, where: random.Random) -> tuple[EmojiThing, ...]:
        count = what.choices(range(1, 7), _COUNT_WEIGHTS.get(split, _BUSY_WEIGHTS))[0]
        count = min(count, int(self.pictures.present.sum()))
        chosen: dict[int, None] = {}
        while len(chosen) < count:
            label = what.randrange(len(self.names))
            if self.pictures.present[label]:
                chosen[label] = None
        columns, rows = _GRIDS[count - 1]
        if where.random() < 0.5:
            columns, rows = rows, columns
        width, height = IMAGE_SIZE / columns, IMAGE_SIZE / rows
        cells = where.sample([(column, row) for column in range(columns) for row in range(rows)], count)
        things = []
        for label, (column, row) in zip(chosen, cells, strict=True):
            size = where.uniform(0.7, 1.1) * min(width, height, 48.0)
            x, y = (
                (cell + 0.5) * length + where.uniform(-0.5, 0.5) * max(0.2 * length, length - size)
                for cell, length in ((column, width), (row, height))
            )
            mirrored = where.random() < 0.5 and not _HANDED.search(self.names[label].lower())
            things.append(EmojiThing(label, x, y, round(size), where.uniform(-20, 20), mirrored))
        return tuple(things)

    def _paste(self, canvas: Image.Image, thing: EmojiThing) -> None:
        picture = Image.fromarray(np.asarray(self.pictures.pixels[thing.label_id]))
        if thing.mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture = picture.resize((thing.size, thing.size), Image.Resampling.BICUBIC)
        picture = picture.rotate(thing.angle, Image.Resampling.BICUBIC, expand=True)
        place = (round(thing.x - picture.width / 2), round(thing.y - picture.height / 2))
        canvas.paste(picture, place, picture)

    def caption(self, scene: EmojiScene, rng: random.Random) -> str:
        """Write a caption as the web would: true, in varied words, and silent about much of the picture.

        Args:
            scene: The scene to describe.
            rng: Source of the choices.

        Returns:
            Text that names one to three of the objects.
        """
        count = min(len(scene.objects), rng.choices((1, 2, 3), (3, 4, 3))[0])
        names = [self.names[thing.label_id] for thing in rng.sample(scene.objects, count)]
        return rng.choice(CAPTIONS).format(" and ".join(filter(None, (", ".join(names[:-1]), names[-1]))))


CAPTIONS = (
    "{}",
    "{}",
    "there is {} in the scene",
    "{} in the scene",
    "a picture of {}",
    "a photo of {}",
    "a drawing with {}",
)
"""Forms of a caption."""


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _background(rng: random.Random) -> Image.Image:
    """A gradient with noise of several scales, and lines, spots and patches that no label names."""
    noise = np.random.default_rng(rng.getrandbits(64))
    y, x = np.mgrid[-0.5 : 0.5 : IMAGE_SIZE * 1j, -0.5 : 0.5 : IMAGE_SIZE * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    blend = (0.5 + 0.7 * (math.cos(angle) * x + math.sin(angle) * y))[..., None]
    first, second = (np.array(_colour(rng), np.float32) for _ in range(2))
    pixels = first + (second - first) * blend
    strength = rng.uniform(0, 60)
    for cells in (3, 7, 15):
        coarse = Image.fromarray(noise.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), np.float32)
        pixels += (fine / 127.5 - 1) * strength
        strength /= 2
    canvas = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(0, 4)):
        ends = [rng.uniform(0, IMAGE_SIZE) for _ in range(4)]
        pen.line(ends, fill=_colour(rng), width=rng.randint(1, 2))
    for _ in range(rng.randint(0, 6)):
        x0, y0 = rng.uniform(-5, IMAGE_SIZE), rng.uniform(-5, IMAGE_SIZE)
        box = (x0, y0, x0 + rng.uniform(2, 12), y0 + rng.uniform(2, 12))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=_colour(rng))
    return canvas


def emoji_scenes(world: EmojiWorld, split: str, size: int, cache_dir: str | None = None) -> datasets.Dataset:
    """Draw a split, or read it from the cache where it was drawn before.

    Args:
        world: Names, pictures and seed.
        split: One of `ovml.data.synthetic.drawn.SPLITS`.
        size: Number of scenes; a larger size continues the same stream of scenes.
        cache_dir: Folder for the Arrow files; the `datasets` library's own by default.

    Returns:
        Memory-mapped rows: `image`, `positive` (ids into the world's names), `negative` (always empty: what is not
        positive is absent) and `image_id`.

    Raises:
        ValueError: If `split` is not a split of this world or `size` is not positive.
    """
    key = f"{EMOJI_WORLD_VERSION}/{world.pictures.folder.name}/{split}/{size}/{world.seed}/{'/'.join(world.names)}"
    fingerprint = f"ovml-emoji-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return drawn_split(partial(world.scene, split), split, size, fingerprint, cache_dir)
