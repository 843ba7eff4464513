"""The drawn world: the same from the same seed, true to its labels and captions."""

import random

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretrain_demo_clip import caption

from ovml.data.synthetic import scenes as world
from ovml.data.synthetic.draw import COLOURS, IMAGE_SIZE, PATTERNS, SHAPES, draw, photograph
from ovml.data.synthetic.drawn import SPLITS
from ovml.data.synthetic.grounds import GROUNDS, draw_ground

PLACES = st.tuples(st.integers(0, 5), st.sampled_from(SPLITS), st.integers(0, 10**6))


def test_the_vocabulary_is_large_compositional_and_split():
    assert len(world.LABELS) >= 100
    assert len(world.UNSEEN_LABELS) >= 30
    assert not set(world.SEEN_LABELS) & set(world.UNSEEN_LABELS)
    assert len(set(world.LABELS)) == len(world.LABELS)
    assert {len(name.split()) for name in world.SEEN_LABELS} == {1, 2, 3}
    assert {len(name.split()) for name in world.UNSEEN_LABELS} == {1, 2, 3}


def test_unseen_labels_are_new_words_or_new_combinations_of_seen_words():
    words = {word for name in world.SEEN_LABELS for word in name.split()}
    assert words == {*SHAPES, *COLOURS, *PATTERNS} - set(world.HELD_OUT_SHAPES)
    new = [name for name in world.UNSEEN_LABELS if not set(name.split()) <= words]
    assert {name.split()[-1] for name in new} == set(world.HELD_OUT_SHAPES)
    assert len(new) < len(world.UNSEEN_LABELS)


@given(PLACES)
def test_a_scene_is_a_function_of_seed_split_and_index(place):
    first, again = world.draw_scene(*place), world.draw_scene(*place)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.objects == again.objects
    assert first.image.size == (IMAGE_SIZE, IMAGE_SIZE)
    assert first.image.mode == "RGB"


@given(PLACES)
def test_labels_say_what_the_objects_are(place):
    scene = world.draw_scene(*place)
    assert 1 <= len(scene.objects) <= 6
    for column, label in enumerate(world.LABELS):
        *adjectives, shape = label.split()
        fits = any(o.shape == shape and set(adjectives) <= {o.colour, o.pattern} for o in scene.objects)
        assert (column in scene.label_ids) == fits


@given(PLACES, st.integers(0, 10**6))
def test_captions_are_true(place, seed):
    scene = world.draw_scene(*place)
    words = caption(scene, random.Random(seed)).split()
    shown = {word for o in scene.objects for name in world.object_names(o) for word in name.split()}
    about = {*SHAPES, *COLOURS, *PATTERNS} & set(words)
    assert about <= shown | {scene.ground}
    assert {*GROUNDS} & set(words) <= shown | {scene.ground}


def test_an_object_changes_the_picture_where_it_stands():
    ratios = []
    for index in range(20):
        scene = world.draw_scene(0, "train", index)
        thing = scene.objects[-1]
        without = draw(scene.objects[:-1], scene.ground, random.Random(index))
        whole = draw(scene.objects, scene.ground, random.Random(index))
        change = np.abs(np.asarray(whole, dtype=int) - np.asarray(without, dtype=int)).mean(-1)
        rows, columns = np.indices(change.shape)
        distance = np.hypot(rows - thing.y, columns - thing.x) / thing.radius
        # The noise differs all over; the object adds to that where it stands.
        ratios.append(change[distance < 0.8].mean() / change[distance > 1.8].mean())
    assert min(ratios) > 1.3
    assert np.median(ratios) > 3


@given(PLACES)
def test_objects_overlap_a_little_and_the_nearest_is_in_front(place):
    things = world.draw_scene(*place).objects
    assert [thing.y for thing in things] == sorted(thing.y for thing in things)
    for i, thing in enumerate(things):
        assert 0 < thing.x < IMAGE_SIZE
        assert 0 < thing.y < IMAGE_SIZE
        for other in things[:i]:
            assert np.hypot(thing.x - other.x, thing.y - other.y) > 0.7 * (thing.radius + other.radius)


def test_some_objects_are_partly_hidden():
    def hidden(scene):
        pairs = [(one, other) for i, one in enumerate(scene.objects) for other in scene.objects[:i]]
        return any(np.hypot(a.x - b.x, a.y - b.y) < 0.9 * (a.radius + b.radius) for a, b in pairs)

    share = np.mean([hidden(world.draw_scene(0, "test", index)) for index in range(100)])
    assert 0.2 < share < 0.95


def test_objects_farther_up_are_smaller():
    things = [thing for index in range(200) for thing in world.draw_scene(0, "test", index).objects]
    half = IMAGE_SIZE / 2
    upper, lower = ([t.radius for t in things if (t.y < half) == up] for up in (True, False))
    assert np.mean(upper) < 0.9 * np.mean(lower)


@pytest.mark.parametrize("ground", GROUNDS)
def test_a_ground_is_brighter_or_darker_than_what_is_above_its_horizon(ground):
    canvas, horizon = draw_ground(ground, 100, random.Random(1))
    rows = np.asarray(canvas, dtype=int).mean(1)
    assert canvas.size == (100, 100)
    assert 20 < horizon < 60
    steps = np.abs(np.diff(rows, axis=0)).sum(1)
    assert steps[round(horizon) - 12 : round(horizon) + 20].max() > 3 * np.median(steps)


def test_a_snapshot_of_no_strength_is_the_drawing():
    image = world.draw_scene(0, "pretrain", 0).image
    same, poor = (np.asarray(photograph(image, random.Random(1), strength), dtype=int) for strength in (0, 1))
    assert np.abs(same - np.asarray(image, dtype=int)).max() <= 1
    assert np.abs(poor - same).mean() > 10


def test_splits_and_seeds_show_different_scenes():
    drawn = {world.draw_scene(seed, split, 0).image.tobytes() for seed in (0, 1) for split in SPLITS}
    assert len(drawn) == 2 * len(SPLITS)


def test_rows_are_the_scenes_and_a_larger_split_continues_a_smaller_one(tmp_path):
    rows = world.scenes("test", 6, 3, str(tmp_path))
    assert isinstance(rows.features["image"], datasets.Image)
    for index in (0, 5):
        scene = world.draw_scene(3, "test", index)
        assert rows[index]["image"].convert("RGB").tobytes() == scene.image.tobytes()
        assert rows[index]["positive"] == scene.label_ids
        assert rows[index]["negative"] == []
    longer = world.scenes("test", 9, 3, str(tmp_path))
    assert longer["positive"][:6] == rows["positive"][:]
    assert len(set(longer["image_id"])) == 9


def test_most_labels_occur_in_a_thousand_scenes():
    counts = np.zeros(len(world.LABELS), dtype=int)
    for index in range(1000):
        counts[world.draw_scene(0, "test", index).label_ids] += 1
    assert (counts > 0).all()
    assert counts.max() < 500


@pytest.mark.parametrize(("split", "size"), [("training", 3), ("train", 0)])
def test_a_wrong_split_or_size_is_named(split, size, tmp_path):
    with pytest.raises(ValueError, match=r"training|at least 1"):
        world.scenes(split, size, 0, str(tmp_path))
