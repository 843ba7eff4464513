"""RAM's chain for training images: each operation by hand, how often each comes, what evaluation does."""

import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ovml.data import Augmentation, DemoDataModule, RAMAugmentation
from ovml.data import ram_augmentation as ram
from ovml.data.rand_augment import RandAugment
from ovml.data.rows import kept_generator
from ovml.data.samplers import TrainSampler
from ovml.encoders.image_processor import ImageProcessor, Preprocessing
from ovml.utils.errors import UserError

PROCESSOR = Preprocessing(squash=True, resample=2, mean=(0.5,) * 3, std=(0.5,) * 3).of(ImageProcessor(48))


@pytest.fixture
def photo():
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((90, 60), Image.Resampling.BICUBIC)


def pixels(image):
    return np.asarray(image).astype(int)


def test_evaluation_squashes_bilinearly(photo):
    expected = pixels(photo.resize((48, 48), Image.Resampling.BILINEAR)) / 255
    torch.testing.assert_close(PROCESSOR(photo), torch.tensor((expected - 0.5) / 0.5).permute(2, 0, 1).float())


def test_crop_and_back():
    image = Image.fromarray(np.arange(200, dtype=np.uint8).repeat(300).reshape(200, 100, 3))
    cut = ram.crop_sides(image, [0.1, 0.05, 0.0, 0.08])
    assert cut.size == image.size
    assert pixels(cut)[0, 0, 0] == pytest.approx(0.05 * 200, abs=2)
    assert pixels(cut)[-1, 0, 0] == pytest.approx(0.92 * 200, abs=2)
    assert ram.crop_sides(Image.new("RGB", (1, 1)), [0.1] * 4).size == (1, 1)


def test_contrast_and_brightness(photo):
    before = pixels(photo)
    assert np.array_equal(pixels(ram.change_contrast(photo, 1.2)), np.clip(np.rint(127 + 1.2 * (before - 127)), 0, 255))
    for factors in ([0.95], [0.9, 1.0, 1.1]):
        expected = np.clip(np.rint(before * np.array(factors)), 0, 255)
        assert np.array_equal(pixels(ram.multiply(photo, factors)), expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_noise(per_channel):
    grey = Image.new("RGB", (200, 150), (128, 128, 128))
    torch.manual_seed(0)
    added = pixels(ram.add_noise(grey, 3.0, per_channel)) - 128
    assert added.mean() == pytest.approx(0, abs=0.05)
    assert added.std() == pytest.approx(math.hypot(3.0, 12**-0.5), rel=0.02)  # with the rounding to bytes
    assert (added[..., 0] == added[..., 1]).all() == (not per_channel)


def test_the_affine_map_moves_points_as_its_formula():
    """Scale, then rotation about the center, then the shift; clockwise, as the y axis points down."""
    scale, shift, degrees = (1.1, 0.9), (0.05, -0.1), 10
    image = Image.new("RGB", (300, 200))
    image.paste("white", (220, 60, 223, 63))
    moved = np.asarray(ram.transform(image, scale, shift, degrees)).mean(axis=2)
    found = [(moved * index).sum() / moved.sum() + 0.5 for index in np.indices(moved.shape)[::-1]]
    x, y, angle = 221.5 - 150, 61.5 - 100, math.radians(degrees)
    x, y = scale[0] * x, scale[1] * y
    turned = (math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y)
    assert found == pytest.approx([turned[0] + 150 + 15, turned[1] + 100 - 20], abs=0.1)
    assert np.asarray(ram.transform(Image.new("RGB", (50, 50), "white"), (0.9, 0.9), (0, 0), 0))[0, 0].max() == 0


def test_how_often_each_operation_comes_and_in_which_order():
    torch.manual_seed(0)
    rounds, counts, first = 2000, Counter(), Counter()
    factors, sigmas = [], []
    for _ in range(rounds):
        operations = RAMAugmentation().draw()
        flips = [op for op in operations if op is ImageOps.mirror]
        rest = [op for op in operations if op is not ImageOps.mirror]
        assert operations == flips + rest
        assert all(isinstance(op, partial) for op in rest)
        counts.update(op.func.__name__ for op in rest)
        counts["flip"] += len(flips)
        first[rest[0].func.__name__] += 1
        own = {op.func.__name__: op.keywords for op in rest}
        counts["own noise"] += own["add_noise"]["per_channel"]
        counts["own factors"] += len(own["multiply"]["factors"]) == 3
        sigmas.append(own["add_noise"]["sigma"])
        factors += own["multiply"]["factors"]
        if "transform" in own:
            assert all(0.9 <= s <= 1.1 for s in own["transform"]["scale"])
            assert all(abs(s) <= 0.1 for s in own["transform"]["shift"])
            assert abs(own["transform"]["degrees"]) <= 10
        if "change_contrast" in own:
            assert 0.75 <= own["change_contrast"]["factor"] <= 1.25
        if "crop_sides" in own:
            assert len(own["crop_sides"]["shares"]) == 4
            assert all(0 <= share <= 0.1 for share in own["crop_sides"]["shares"])
    assert counts["add_noise"] == counts["multiply"] == rounds
    assert counts["flip"] / rounds == pytest.approx(0.5, abs=0.04)
    for name in ("crop_sides", "change_contrast", "transform", "own noise", "own factors"):
        assert counts[name] / rounds == pytest.approx(0.2, abs=0.04)
    assert set(first) == {"add_noise", "multiply", "crop_sides", "change_contrast", "transform"}
    assert (min(sigmas), max(sigmas)) == pytest.approx((0, 3.825), abs=0.02)
    assert (min(factors), max(factors)) == pytest.approx((0.9, 1.1), abs=0.002)


def test_the_rectangle_that_is_erased():
    torch.manual_seed(0)
    areas, ratios, values = [], [], []
    for _ in range(300):
        before = torch.full((3, 224, 224), 7.0)
        after = ram.erase(before)
        changed = (after != 7).all(dim=0)
        rows, columns = (changed.any(dim=d).nonzero().flatten() for d in (1, 0))
        height, width = len(rows), len(columns)
        assert changed.sum() == height * width  # one whole rectangle
        areas.append(height * width / 224**2)
        ratios.append(height / width)
        values.append(after[:, changed])
        assert (before == 7).all()
    assert 0.018 < min(areas) < 0.04
    assert 0.3 < max(areas) < 0.336
    assert 0.29 < min(ratios) < 0.35
    assert 2.9 < max(ratios) < 3.45
    noise = torch.cat([value.flatten() for value in values])
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)


def test_padding_and_crop_shift_by_up_to_ten_pixels():
    torch.manual_seed(0)
    white, borders = Image.new("RGB", (60, 60), "white"), Counter()
    for _ in range(150):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RAMAugmentation, "draw", lambda self: [])
            patch.setattr(ram, "erase", lambda pixels: pixels)
            found = RAMAugmentation()(white, PROCESSOR)[0]
        black = [int((line == -1).sum()) for line in (found[:, 24], found[24])]
        borders.update(black)
        assert found.shape == (48, 48)
        assert set(found.unique().tolist()) <= {-1.0, 1.0}
    assert min(borders) == 0
    assert max(borders) == 10


def test_it_depends_on_the_seed_alone(photo):
    def run(seed):
        with kept_generator():
            torch.manual_seed(seed)
            return RAMAugmentation()(photo, PROCESSOR)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert run(1).shape == (3, 48, 48)


class Plain(Augmentation):
    def __call__(self, image, processor):
        return processor(image) + 5


def demo(tmp_path, **options):
    return DemoDataModule(
        clip="ovml-demo", cache_dir=str(tmp_path), train_size=10, eval_size=4, batch_size=4, **options
    )


def test_a_data_module_takes_an_augmentation(tmp_path):
    batch = next(iter(demo(tmp_path, augmentation=Plain()).train_dataloader()))
    assert batch["pixel_values"].mean() > 3
    evaluated = next(iter(demo(tmp_path, augmentation=Plain()).val_dataloader()))["pixel_values"]
    assert PROCESSOR.normalize_pixels(evaluated).mean() < 3
    for other, name in (({"rand_augment": RandAugment()}, "data.rand_augment"), ({"augment": False}, "data.augment")):
        with pytest.raises(UserError, match=f"{name}.* does not go with it; remove one"):
            demo(tmp_path, augmentation=Plain(), **other)


@pytest.mark.parametrize("reshuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_order_and_last_batch(tmp_path, reshuffle, drop_last):
    loader = demo(tmp_path, reshuffle=reshuffle, drop_last=drop_last).train_dataloader()
    orders, pictures = [], []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        orders.append([batch["row"] for batch in batches])
        pictures.append(batches[0]["pixel_values"])
    assert [len(rows) for rows in orders[0]] == ([4, 4] if drop_last else [4, 4, 2])
    assert (orders[0] == orders[1]) == (not reshuffle)
    assert not torch.equal(*pictures)  # the augmentation of an epoch is its own
    assert loader.sampler.epoch == 1


def test_the_order_is_the_same_on_each_process():
    shares = []
    for rank in (0, 1):
        sampler = TrainSampler(range(6), 2, rank, shuffle=True, seed=3, reshuffle=False)
        sampler.set_epoch(5)
        shares.append(list(sampler))
    assert sorted(index for share in shares for _, index in share) == list(range(6))
    assert {epoch for share in shares for epoch, _ in share} == {5}
