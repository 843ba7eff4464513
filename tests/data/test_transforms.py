from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil

from ovml.data.rand_augment import RandAugment
from ovml.data.transforms import TrainTransform
from ovml.encoders.image_processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor

SPEC = ImageProcessor(32)


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("resize", [None, 36])
@pytest.mark.parametrize("size", [(32, 32), (50, 33), (33, 50), (20, 90), (101, 40)])
def test_evaluation_equals_transformers_image_processor(size, resize):
    processor = CLIPImageProcessorPil(size={"shortest_edge": resize or 32}, crop_size={"height": 32, "width": 32})
    image = noise(*size)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(replace(SPEC, resize=resize)(image), theirs, atol=1e-5, rtol=0)


@given(width=st.integers(1, 300), height=st.integers(1, 300), seed=st.integers(0, 1000))
def test_training_crops_lie_in_the_picture(width, height, seed):
    torch.manual_seed(seed)
    left, top, right, bottom = TrainTransform(SPEC).crop_box(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@given(seed=st.integers(0, 200))
def test_training_crops_keep_to_area_and_ratio(seed):
    torch.manual_seed(seed)
    left, top, right, bottom = TrainTransform(SPEC, scale=(0.3, 0.6)).crop_box(400, 400)
    width, height = right - left, bottom - top
    assert 0.29 < width * height / 160_000 < 0.61
    assert 0.74 < width / height < 1.35


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((10, 1000), (0, 493, 10, 506)),  # 10 / 13 is nearest to 3 / 4
        ((1000, 9), (494, 0, 506, 9)),
        ((1, 90), (0, 44, 1, 45)),
    ],
)
def test_where_no_crop_fits_the_largest_of_an_allowed_ratio_is_taken(size, box):
    torch.manual_seed(0)
    for _ in range(20):
        assert TrainTransform(SPEC).crop_box(*size) == box


def test_an_image_of_an_allowed_ratio_in_which_no_crop_fits_stays_whole():
    assert TrainTransform(SPEC, scale=(2, 2)).crop_box(40, 50) == (0, 0, 40, 50)


@pytest.mark.parametrize("box", [(10, 5, 50, 35), (0, 0, 33, 64), (40, 30, 47, 60)])
def test_crops_read_no_pixel_outside_of_their_box(box, monkeypatch):
    transform = TrainTransform(SPEC, flip=0)
    monkeypatch.setattr(transform, "crop_box", lambda width, height: box)
    image, changed = noise(64, 64), Image.new("RGB", (64, 64), "white")
    changed.paste(image.crop(box), box[:2])
    assert torch.equal(transform(image), transform(changed))


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, squash=True), replace(SPEC, resize=36)])
def test_without_a_crop_it_is_the_image_of_the_evaluation(spec):
    image = noise(60, 40)
    assert torch.equal(TrainTransform(spec, None, flip=0)(image), spec.pixels(image))


@pytest.mark.parametrize("cutout", [0.25, 0.5, 1.0])
def test_cutout_paints_one_square_of_one_colour_around_a_point_of_the_image(cutout):
    torch.manual_seed(0)
    spec = ImageProcessor(32)
    image, sizes, colours = noise(32, 32), set(), set()
    for _ in range(200):
        changed = TrainTransform(spec, None, flip=0, cutout=cutout)(image)
        rows, columns = (changed != spec.pixels(image)).any(dim=0).nonzero(as_tuple=True)
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        painted = changed[:, top : bottom + 1, left : right + 1].flatten(1)
        assert (painted == painted[:, :1]).all()
        colours.add(tuple(painted[:, 0].tolist()))
        sizes.add(int(bottom - top) + 1)
        half = round(32 * cutout) // 2
        assert top == 0 or left == 0 or bottom == 31 or right == 31 or bottom - top == right - left == 2 * half
    assert len(colours) > 190
    assert max(sizes) == min(2 * half + 1, 32)
    assert min(sizes) <= half + 3


def test_training_transform_is_the_plain_one_when_nothing_is_random():
    image = noise(32, 32)
    assert torch.equal(TrainTransform(SPEC, scale=(1, 1), ratio=(1, 1), flip=0)(image), SPEC.pixels(image))
    flipped = TrainTransform(SPEC, scale=(1, 1), ratio=(1, 1), flip=1)(image)
    assert torch.equal(flipped.flip(-1), SPEC.pixels(image))


@pytest.mark.parametrize("rand_augment", [None, RandAugment()])
def test_a_seed_repeats_the_augmentation(rand_augment):
    def draw(seed):
        torch.manual_seed(seed)
        return TrainTransform(SPEC, rand_augment=rand_augment)(noise(60, 40))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


class Outside(RandAugment):
    """Shows the colour of what lies outside the crop."""

    operations = {"Outside": lambda image, level, fill: Image.new("RGB", image.size, fill)}  # noqa: RUF012


def test_outside_the_crop_is_the_mean_colour():
    transform = TrainTransform(SPEC, rand_augment=Outside(prob=1))
    assert SPEC.normalize_pixels(transform(noise(60, 40))).abs().max() < 0.5 / 255 / min(SPEC.std) + 1e-6


def test_rand_augment_sees_the_crop_as_an_rgb_picture_of_the_final_size():
    seen = []

    class Look(RandAugment):
        def __call__(self, image, fill):
            seen.append((image.mode, image.size))
            return image

    TrainTransform(SPEC, rand_augment=Look())(noise(60, 40))
    assert seen == [("RGB", (32, 32))]


@pytest.mark.parametrize(
    "spec", [SPEC, ImageProcessor(32, IMAGENET_MEAN, IMAGENET_STD), ImageProcessor(32, (0,) * 3, (1,) * 3)]
)
@given(width=st.integers(1, 40), height=st.integers(1, 40))
def test_normalisation_is_the_plain_formula(spec, width, height):
    image = noise(width, height)
    values = spec.normalize(image)
    plain = (np.asarray(image) / 255 - spec.mean) / spec.std
    assert values.dtype == torch.float32
    assert values.is_contiguous()
    np.testing.assert_allclose(values.numpy(), plain.transpose(2, 0, 1), atol=1e-6, rtol=0)


def test_crops_have_both_orientations_and_all_of_the_range():
    torch.manual_seed(0)
    boxes = [TrainTransform(SPEC).crop_box(400, 400) for _ in range(300)]
    ratios = [(right - left) / (bottom - top) for left, top, right, bottom in boxes]
    areas = [(right - left) * (bottom - top) / 400**2 for left, top, right, bottom in boxes]
    assert 0.74 < min(ratios) < 0.77
    assert 1.3 < max(ratios) < 1.35
    assert 0.07 < min(areas) < 0.12
    assert 0.9 < max(areas) <= 1
    assert 0.4 < sum(ratio < 1 for ratio in ratios) / 300 < 0.6


def test_half_of_the_crops_are_flipped():
    torch.manual_seed(0)
    image, transform = noise(32, 32), TrainTransform(SPEC, scale=(1, 1), ratio=(1, 1))
    plain = sum(torch.equal(transform(image), SPEC.pixels(image)) for _ in range(200))
    assert 70 < plain < 130
    always = TrainTransform(SPEC, scale=(1, 1), ratio=(1, 1), flip=0.95)
    assert sum(torch.equal(always(image), SPEC.pixels(image)) for _ in range(100)) < 20


def test_crops_are_resampled_as_the_checkpoint_says():
    image = noise(64, 64)
    for resample in (2, 3):
        spec = replace(SPEC, resample=resample)
        assert torch.equal(TrainTransform(spec, scale=(1, 1), ratio=(1, 1), flip=0)(image), spec.pixels(image))


def test_imagenets_numbers_are_transformers_own():
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    assert (list(IMAGENET_MEAN), list(IMAGENET_STD)) == (list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))
