import collections
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from PIL import Image

from ovml.data import DemoDataModule, RandAugment
from ovml.data.rand_augment import GREY, OPERATIONS
from ovml.utils.errors import UserError

FILL = (124, 116, 104)
PLAIN = {"AutoContrast", "Equalize", "Invert"}  # know no strength
levels = st.floats(-1, 1)
sizes = st.integers(1, 70)


def noise(width, height, low=0, high=256):
    return Image.fromarray(np.random.default_rng(0).integers(low, high, (height, width, 3), dtype=np.uint8))


def pixels(image):
    return np.asarray(image).astype(float)


def apply(name, image, level):
    return pixels(OPERATIONS[name](image, level, FILL))


def seeded(image, seed, **kwargs):
    torch.manual_seed(seed)
    return RandAugment(**kwargs)(image)


# The draw


def test_the_same_seed_gives_the_same_picture():
    image = noise(50, 40)
    pictures = [[seeded(image, seed).tobytes() for seed in range(20)] for _ in range(2)]
    assert pictures[0] == pictures[1]
    assert len(set(pictures[0])) > 10


def test_operations_are_equally_frequent_and_half_of_them_are_carried_out():
    torch.manual_seed(0)
    rounds = 6000
    drawn = [operation for _ in range(rounds) for operation in RandAugment().draw()]
    assert len(drawn) == pytest.approx(rounds, rel=0.05)  # two operations, each with a chance of one half
    counts = collections.Counter(name for name, _ in drawn)
    assert set(counts) == set(OPERATIONS)
    expected = len(drawn) / len(OPERATIONS)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_magnitudes_are_normal_and_directions_even():
    torch.manual_seed(0)
    drawn = [level for _ in range(5000) for _, level in RandAugment(magnitude=5, std=0.5, prob=1).draw()]
    assert np.mean(np.abs(drawn)) == pytest.approx(0.5, abs=0.003)
    assert np.std(np.abs(drawn)) == pytest.approx(0.05, abs=0.002)
    assert np.mean(np.array(drawn) > 0) == pytest.approx(0.5, abs=0.03)


@given(magnitude=st.floats(0, 10), seed=st.integers(0, 100))
def test_without_spread_the_magnitude_is_the_one_given(magnitude, seed):
    torch.manual_seed(seed)
    drawn = RandAugment(num_ops=4, magnitude=magnitude, std=0, prob=1).draw()
    assert [abs(level) for _, level in drawn] == [magnitude / 10] * 4


def test_magnitudes_are_clipped():
    torch.manual_seed(0)
    drawn = [abs(level) for _ in range(200) for _, level in RandAugment(magnitude=9, std=5, prob=1).draw()]
    assert max(drawn) == 1
    assert min(drawn) >= 0


@pytest.mark.parametrize("prob", [0, 1])
@pytest.mark.parametrize("num_ops", [1, 2, 5])
def test_all_or_none_are_carried_out(num_ops, prob):
    assert len(RandAugment(num_ops, prob=prob).draw()) == num_ops * prob


def test_a_picture_that_nothing_is_done_to_stays():
    image = noise(30, 20)
    assert seeded(image, 0, prob=0).tobytes() == image.tobytes()


def test_a_subclass_has_operations_of_its_own():
    class Red(RandAugment):
        operations = {"Fill": lambda image, level, fill: Image.new("RGB", image.size, fill)}  # noqa: RUF012

    assert Red(prob=1)(noise(4, 4), fill=(255, 0, 0)).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"num_ops": value} for value in (0, 1.5, True)),
        *({"magnitude": value} for value in (11, -1, math.nan)),
        *({"std": value} for value in (-0.1, math.nan, math.inf)),
        *({"prob": value} for value in (1.5, math.nan)),
    ],
)
def test_arguments_out_of_range_are_named(arguments):
    (name,) = arguments
    with pytest.raises(UserError, match=f"RandAugment: {name} must be"):
        RandAugment(**arguments)


# The operations


@given(width=sizes, height=sizes, seed=st.integers(0, 500), magnitude=st.floats(0, 10))
def test_size_and_mode_stay(width, height, seed, magnitude):
    image = seeded(noise(width, height), seed, num_ops=3, magnitude=magnitude, prob=1)
    assert (image.size, image.mode) == ((width, height), "RGB")


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("level", [-1.0, 1.0])
def test_greatest_strength_is_no_error(name, level):
    image = noise(23, 31)
    before = image.tobytes()
    assert OPERATIONS[name](image, level, GREY).size == image.size
    assert image.tobytes() == before  # the picture given is left alone


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - PLAIN - {"Posterize"}))
@pytest.mark.parametrize("size", [(40, 40), (37, 23), (1, 5)])
def test_no_strength_changes_nothing(name, size):
    image = noise(*size)
    np.testing.assert_array_equal(apply(name, image, 0.0), pixels(image))


@given(level=levels)
def test_pointwise_operations(level):
    image = noise(32, 20)
    x = pixels(image)
    strength = abs(level)
    np.testing.assert_array_equal(apply("Invert", image, level), 255 - x)
    step = 2 ** (8 - max(1, 4 - int(4 * strength)))
    np.testing.assert_array_equal(apply("Posterize", image, level), x // step * step)
    np.testing.assert_array_equal(apply("Solarize", image, level), np.where(x < 256 - int(256 * strength), x, 255 - x))
    np.testing.assert_array_equal(apply("SolarizeAdd", image, level), x + (x < 128) * int(110 * strength))


@given(level=levels)
def test_enhancements_go_away_from_what_they_enhance(level):
    """`base + factor * (x - base)`, where the base is black, grey, the mean grey or the smoothed picture."""
    image = noise(32, 20)
    x = pixels(image)
    factor = max(0.1, 1 + 0.9 * level)
    grey = (x @ [0.299, 0.587, 0.114]).round()[..., None]
    smooth = x.copy()  # the border is not smoothed
    around = sum(x[1 + i : 19 + i, 1 + j : 31 + j] for i in (-1, 0, 1) for j in (-1, 0, 1))
    smooth[1:-1, 1:-1] = ((around + 4 * x[1:-1, 1:-1]) / 13).round()
    bases = {"Brightness": 0 * x, "Color": grey, "Contrast": 0 * x + grey.mean().round(), "Sharpness": smooth}
    for name, base in bases.items():
        # Pillow rounds base and result; a base that is 1 off shows as |1 - factor|.
        expected = (base + factor * (x - base)).clip(0, 255)
        np.testing.assert_allclose(apply(name, image, level), expected, atol=2, err_msg=name)


def test_autocontrast_stretches_each_channel():
    image = noise(32, 20, 50, 151)
    image = Image.merge("RGB", [band.point(lambda v, i=i: v // (i + 1)) for i, band in enumerate(image.split())])
    x = pixels(image)
    low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
    np.testing.assert_allclose(apply("AutoContrast", image, 0.9), (x - low) * 255 / (high - low), atol=1)


def test_equalize_makes_ranks_of_values():
    image = noise(256, 256, 90, 130)
    x, y = pixels(image), apply("Equalize", image, 0.9)
    for before, after in zip(x.transpose(2, 0, 1), y.transpose(2, 0, 1), strict=True):
        ordered = np.sort(before.ravel())
        below = np.searchsorted(ordered, before)  # pixels with a lesser value
        np.testing.assert_allclose(after, 255 * below / below.max(), atol=2)


@pytest.mark.parametrize("sign", [-1, 1])
def test_translations_move_by_a_share_of_the_side(sign):
    image = noise(40, 60)
    x = pixels(image)
    expected = np.full_like(x, FILL)
    moved = apply("TranslateXRel", image, sign * 0.5)  # 0.45 * 0.5 * 40 = 9 pixels
    expected[:, slice(None, -9) if sign > 0 else slice(9, None)] = x[:, 9:] if sign > 0 else x[:, :-9]
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(
        apply("TranslateYRel", image.transpose(Image.Transpose.TRANSPOSE), sign * 0.5), expected.transpose(1, 0, 2)
    )


@pytest.mark.parametrize("level", [-0.9, -0.3, 0.4, 0.9])
@pytest.mark.parametrize("name", ["ShearX", "ShearY", "Rotate"])
def test_shear_and_rotation_of_a_slope(name, level):
    """A resampled slope is the slope at the place where the pixel comes from."""
    width, height = 50, 40
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)

    def slope(x, y):
        return 30 + 2 * x + 2 * y

    if name == "Rotate":  # counter-clockwise on the screen, whose y points down, about the centre
        angle = np.deg2rad(30 * level)
        right, down = x - width / 2, y - height / 2
        x_from = width / 2 + np.cos(angle) * right - np.sin(angle) * down
        y_from = height / 2 + np.sin(angle) * right + np.cos(angle) * down
    else:
        x_from = x + 0.3 * level * y if name == "ShearX" else x
        y_from = y + 0.3 * level * x if name == "ShearY" else y
    image = Image.fromarray(np.repeat(slope(x, y)[..., None], 3, axis=2).round().astype(np.uint8))
    result = apply(name, image, level)
    inside = (x_from > 2) & (x_from < width - 2) & (y_from > 2) & (y_from < height - 2)
    outside = (x_from < 0) | (x_from > width) | (y_from < 0) | (y_from > height)
    assert inside.sum() > 800
    assert outside.sum() > 50
    apart = result[inside][:, 0] - slope(x_from, y_from)[inside]
    assert apart.mean() == pytest.approx(-0.5, abs=0.05)  # Pillow drops the fraction
    assert np.abs(apart).max() < 1.5
    assert (result[outside] == FILL).all()


# In a data module


def test_a_data_module_augments_alike_whatever_the_workers(tiny, tmp_path):
    def batch(workers, rand_augment):
        data = DemoDataModule(
            8,
            4,
            cache_dir=str(tmp_path),
            clip=tiny,
            batch_size=8,
            num_workers=workers,
            rand_augment=rand_augment,
            seed=0,
        )
        return next(iter(data.train_dataloader()))["pixel_values"]

    augmented = batch(0, RandAugment(prob=1))
    assert torch.equal(augmented, batch(2, RandAugment(prob=1)))
    assert not torch.equal(augmented, batch(0, None))


def test_the_command_line_names_it_by_class_path(tiny, tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DemoDataModule, "data")
    arguments = ["--data.clip", tiny, "--data.cache_dir", str(tmp_path)]
    arguments += ["--data.rand_augment", "ovml.data.RandAugment", "--data.rand_augment.magnitude", "5"]
    data = parser.instantiate(parser.parse_args(arguments)).data
    augment = data.train_transform.rand_augment
    assert (type(augment), augment.num_ops, augment.magnitude) == (RandAugment, 2, 5)


def test_it_asks_for_augmentation(tiny, tmp_path):
    with pytest.raises(UserError, match="data.augment false"):
        DemoDataModule(4, 4, cache_dir=str(tmp_path), clip=tiny, augment=False, rand_augment=RandAugment())
