"""Scenes of emoji: the same from the same seed, true to their labels, alike in every style."""

import hashlib
import random
import sys
from itertools import pairwise
from pathlib import Path

import datasets
import fake_emoji
import numpy as np
import pytest
from fake_emoji import EMOJIS, NAMES
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from worlds.emoji.names import emoji_names, emoji_vocabulary
from worlds.emoji.pictures import EmojiPictures, emoji_pictures
from worlds.emoji.scenes import IMAGE_SIZE, EmojiThing, EmojiWorld, emoji_scenes

from ovml.data.synthetic.drawn import SPLITS
from ovml.utils.errors import UserError

PLACES = st.tuples(st.sampled_from(SPLITS), st.integers(0, 10**6))


def in_memory(pixels, present=None):
    return EmojiPictures(pixels, np.ones(len(pixels), dtype=bool) if present is None else present, Path("none"))


def squares():
    pixels = np.empty((len(NAMES), 40, 40, 4), dtype=np.uint8)
    for i, name in enumerate(NAMES):
        pixels[i] = fake_emoji.colour(name)
    return pixels


WORLD = EmojiWorld(NAMES, in_memory(squares()), seed=4)

# ---------------------------------------------------------------------- names


@pytest.fixture
def stand_in(monkeypatch):
    fake_emoji.install(monkeypatch)


def naive_is_unseen(name):
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % 5 == 0


def test_names_are_single_characters_without_flags_clocks_and_keycaps(stand_in):
    names = emoji_names()
    assert names == EMOJIS
    unseen = [name for name in NAMES if naive_is_unseen(name)]
    assert 1 < len(unseen) < 10
    assert list(names) == sorted(set(NAMES) - set(unseen)) + sorted(unseen)
    vocabulary = emoji_vocabulary(tuple(names))
    assert vocabulary.names == tuple(names)
    assert vocabulary.unseen == tuple(sorted(unseen))


def test_fewer_names_are_part_of_more(stand_in):
    worlds = [set(emoji_names(size)) for size in (10, 15, 20, None)]
    assert [len(names) for names in worlds] == [10, 15, 20, len(NAMES)]
    assert all(few < more for few, more in pairwise(worlds))
    for size in (0, 9, len(NAMES) + 1):
        with pytest.raises(UserError, match=rf"data.num_names must be from 10 to {len(NAMES)}; got {size}$"):
            emoji_names(size)


def test_without_the_package_its_name_is_given(stand_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(UserError, match=r"pip install emoji$"):
        emoji_names()


def test_the_real_names_are_the_same_everywhere():
    pytest.importorskip("emoji", reason="PyPI's emoji is not installed")
    names = emoji_names()
    vocabulary = emoji_vocabulary(tuple(names))
    assert (len(vocabulary.seen), len(vocabulary.unseen)) == (1071, 281)
    assert len(set(names.values())) == 1352
    assert {"grinning face", "hedgehog", "piñata"} <= set(names)
    assert not [name for name in names if "skin tone" in name or "o'clock" in name or "keycap" in name]
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == "47fff8a04feb0bb8"  # of emoji 2.16.0


# ---------------------------------------------------------------------- scenes


@given(PLACES)
def test_a_scene_is_a_function_of_seed_split_and_index(place):
    first, again = WORLD.scene(*place), WORLD.scene(*place)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.objects == again.objects
    assert first.image.size == (IMAGE_SIZE, IMAGE_SIZE)
    assert first.image.mode == "RGB"


@given(PLACES)
def test_objects_are_different_and_in_the_picture(place):
    scene = WORLD.scene(*place)
    assert 1 <= len(scene.objects) <= 6
    assert scene.label_ids == sorted({thing.label_id for thing in scene.objects})
    for thing in scene.objects:
        assert 0 < thing.x < IMAGE_SIZE
        assert 0 < thing.y < IMAGE_SIZE
        assert 16 <= thing.size <= 53
        assert not (thing.mirrored and NAMES[thing.label_id] in ("left arrow", "play button"))
    for i, one in enumerate(scene.objects):
        for other in scene.objects[:i]:
            assert max(abs(one.x - other.x), abs(one.y - other.y)) > 10


@given(st.integers(0, 10**6))
def test_an_object_is_drawn_where_it_stands(index):
    scene = WORLD.scene("pretrain", index)
    thing = scene.objects[-1]  # the topmost
    x, y = round(thing.x), round(thing.y)
    middle = np.asarray(scene.image)[max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4].reshape(-1, 3).mean(0)
    assert np.abs(middle - fake_emoji.colour(NAMES[thing.label_id])[:3]).max() < 6


@pytest.mark.parametrize("mirrored", [False, True])
def test_objects_are_mirrored_then_turned_against_the_clock(mirrored):
    pixels = np.zeros((1, 40, 40, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:, :, 20:] = 255  # dark left, white right
    canvas = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "green")
    EmojiWorld(("flag",), in_memory(pixels))._paste(canvas, EmojiThing(0, 36, 36, 40, 20.0, mirrored))
    angle = np.deg2rad(20)
    for sign in (-1, 1):  # left, right
        x, y = 36 + sign * 12 * np.cos(angle), 36 - sign * 12 * np.sin(angle)
        red = canvas.getpixel((round(x), round(y)))[0]
        assert (red > 200) == ((sign == 1) != mirrored)
    assert canvas.getpixel((2, 2)) == (0, 128, 0)


@given(PLACES)
def test_another_style_shows_the_same_objects_in_the_same_places(place):
    other = EmojiWorld(NAMES, in_memory(255 - squares() // 2), WORLD.seed)
    assert other.scene(*place).objects == WORLD.scene(*place).objects


def test_what_has_no_picture_is_not_shown():
    present = np.ones(len(NAMES), dtype=bool)
    present[[2, 5]] = False
    without = EmojiWorld(NAMES, in_memory(squares(), present), WORLD.seed)
    changed = 0
    for index in range(60):
        scene, whole = without.scene("test", index), WORLD.scene("test", index)
        assert not {2, 5} & set(scene.label_ids)
        if {2, 5} & set(whole.label_ids):
            changed += 1
            assert len(scene.objects) == len(whole.objects)
        else:
            assert scene.objects == whole.objects
    assert changed > 5


def test_splits_and_seeds_show_different_scenes():
    worlds = [EmojiWorld(NAMES, WORLD.pictures, seed) for seed in (0, 1)]
    assert len({world.scene(split, 0).image.tobytes() for world in worlds for split in SPLITS}) == 2 * len(SPLITS)


@given(PLACES, st.integers(0, 10**6))
def test_captions_are_true(place, seed):
    scene = WORLD.scene(*place)
    text = WORLD.caption(scene, random.Random(seed))
    shown = {NAMES[i] for i in scene.label_ids}
    named = {name for name in NAMES if name in text}
    assert named
    assert named <= shown


@pytest.mark.parametrize(("names", "present"), [(NAMES[:2], None), (NAMES, np.zeros(len(NAMES), dtype=bool))])
def test_pictures_that_do_not_fit_are_refused(names, present):
    with pytest.raises(ValueError, match=rf"one is needed for each of {len(names)} names; got"):
        EmojiWorld(names, in_memory(squares(), present))


@pytest.fixture
def world(tmp_path):
    folder = fake_emoji.write(tmp_path / "pictures")
    return EmojiWorld(NAMES, emoji_pictures(folder, tuple(EMOJIS.values()), tmp_path), 3)


def test_rows_are_the_scenes_and_a_larger_split_continues_a_smaller_one(world, tmp_path, monkeypatch):
    rows = emoji_scenes(world, "test", 6, str(tmp_path))
    assert isinstance(rows.features["image"], datasets.Image)
    assert rows.cache_files, "the rows are in memory, not mapped"
    for index in (0, 5):
        scene = world.scene("test", index)
        assert rows[index]["image"].convert("RGB").tobytes() == scene.image.tobytes()
        assert rows[index]["positive"] == scene.label_ids
        assert rows[index]["negative"] == []
    longer = emoji_scenes(world, "test", 9, str(tmp_path))
    assert longer["positive"][:6] == rows["positive"][:]
    assert len(set(longer["image_id"])) == 9
    monkeypatch.setattr(EmojiWorld, "scene", lambda *_: pytest.fail("drawn again"))
    assert emoji_scenes(world, "test", 6, str(tmp_path))["positive"][:] == rows["positive"][:]


@pytest.mark.parametrize(("split", "size"), [("training", 3), ("train", 0)])
def test_a_wrong_split_or_size_is_named(split, size, tmp_path):
    with pytest.raises(ValueError, match=r"training|at least 1"):
        emoji_scenes(WORLD, split, size, str(tmp_path))
