"""The image processor against transformers' own, over a matrix of settings."""

import json
import shutil
import tracemalloc
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from ovml import OpenVocabularyModel, UserError, load_model
from ovml.encoders.checkpoints import load_image_processor
from ovml.encoders.image_processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor, Preprocessing
from ovml.saving import save_model

SIZES = [(48, 48), (31, 70), (100, 53), (200, 47), (1, 90)]
RESIZES = [
    {"shortest_edge": 48},
    {"shortest_edge": 60},
    {"shortest_edge": 30},
    *({"height": s, "width": s} for s in (48, 57)),
]
SQUARE = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
PIXELS = [
    {},
    {"image_mean": 0.5, "image_std": 0.5},
    {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)},
    {"do_normalize": False},
    {"do_rescale": False},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    {"do_rescale": False, "do_normalize": False},
]


def photo(size, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def checkpoint(tiny, folder, processor):
    shutil.copytree(tiny, folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("resize", "pixels"), product(RESIZES, PIXELS))
def test_every_setting_is_followed_pixel_by_pixel(tiny, tmp_path, resize, pixels):
    theirs = CLIPImageProcessorPil(size=resize, crop_size={"height": 48, "width": 48}, **pixels)
    ours = load_image_processor(checkpoint(tiny, tmp_path / "clip", theirs))
    for size in SIZES:
        image = photo(size)
        expected = torch.from_numpy(np.asarray(theirs(image, return_tensors="np")["pixel_values"][0]))
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(ours(image) / scale, expected.float() / scale, atol=2e-6, rtol=0)


def test_the_crop_begins_where_transformers_begins_it_and_rounded_where_torchvision_does():
    """For each length of a resized side; the two differ in a quarter of them."""
    from transformers.image_transforms import center_crop

    plain, rounded = ImageProcessor(224, resize=256), ImageProcessor(224, resize=256, round_crop=True)
    differ = 0
    for length in range(224, 224 + 1200):
        theirs = center_crop(np.arange(length)[None, None], (1, 224), input_data_format="channels_first")
        assert plain.crop_start(length) == theirs[0, 0, 0]
        assert rounded.crop_start(length) == int(round((length - 224) / 2.0))  # torchvision's line  # noqa: RUF046
        differ += rounded.crop_start(length) != plain.crop_start(length)
    assert differ == 300
    for length in range(1, 224):  # of an odd padding transformers puts the larger half first, torchvision the smaller
        padded = center_crop(np.ones((1, 1, length)), (1, 224), input_data_format="channels_first")
        assert plain.crop_start(length) == -int(padded.argmax())
        assert rounded.crop_start(length) == -((224 - length) // 2)


@pytest.mark.parametrize("rounded", [False, True])
def test_pixels_of_the_crop_are_those_of_its_place(rounded):
    ours = ImageProcessor(48, (0, 0, 0), (1 / 255,) * 3, round_crop=rounded)
    for width in range(48, 100):
        ramp = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (48, width, 3))
        for image, axis in ((Image.fromarray(ramp.copy()), 2), (Image.fromarray(ramp.transpose(1, 0, 2).copy()), 1)):
            start = float(ours(image).select(axis, 0)[0, 0])
            assert round(start) == (round((width - 48) / 2) if rounded else (width - 48) // 2)


def test_resized_sides_are_transformers_own():
    from transformers.image_transforms import get_resize_output_image_size

    ours = ImageProcessor(224)
    for width in (1, 5, 40, 55, 83, 97, 200, 333, 500):
        for height in range(1, 1200, 7):
            theirs = get_resize_output_image_size(
                np.empty((height, width, 3), bool), 224, default_to_square=False, input_data_format="channels_last"
            )
            assert ours.resized(width, height) == theirs[::-1]


def test_one_number_in_a_list_is_of_all_channels(tiny, tmp_path):
    alone, listed = (
        load_image_processor(checkpoint(tiny, tmp_path / str(i), CLIPImageProcessorPil(image_mean=mean, **SQUARE)))
        for i, mean in enumerate((0.5, [0.5]))
    )
    assert alone == listed


def test_whole_images_without_a_crop(tiny, tmp_path):
    theirs = CLIPImageProcessorPil(size={"height": 48, "width": 48}, do_center_crop=False)
    ours = load_image_processor(checkpoint(tiny, tmp_path / "clip", theirs))
    image = photo((90, 40))
    expected = torch.from_numpy(np.asarray(theirs(image, return_tensors="np")["pixel_values"][0]))
    torch.testing.assert_close(ours(image), expected, atol=1e-5, rtol=0)
    assert ours == ImageProcessor(48, squash=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_resize": False}, "do_resize is false"),
        ({"do_center_crop": False}, "do_center_crop is false and images keep their aspect ratio"),
        ({"crop_size": {"height": 40, "width": 40}}, "images of 40 x 40 pixels; the image tower takes 48 x 48"),
        ({"crop_size": {"height": 48, "width": 40}}, "images of 48 x 40 pixels"),
        ({"crop_size": {"height": 0, "width": 0}}, "images of 0 x 0 pixels"),
        ({"size": {"height": 60, "width": 50}}, "images of 48 x 48 and 60 x 50 pixels"),
        ({"image_mean": [0.5, 0.5]}, "one number or three"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean, 1 must be a finite number; got nan"),
        ({"image_mean": float("nan")}, "image_mean must be a finite number or a list; got nan"),
        ({"image_mean": [0.5, "x", 0.5]}, "image_mean, 1 must be a finite number; got 'x'"),
        ({"image_std": [0.5, 0.0, 0.5]}, "std must be above 0"),
        ({"image_std": None}, "image_std must be a finite number or a list"),
        ({"crop_size": {"height": 100000, "width": 100000}}, "images of 100000 x 100000 pixels"),
        ({"crop_size": None}, "crop_size must be a mapping; got None"),
        ({"crop_size": True}, "preprocessor_config.json"),
        ({"size": None}, "size must be a mapping; got None"),
        ({"size": {"shortest_edge": "x"}}, "size, shortest_edge must be a whole number"),
        ({"size": {"shortest_edge": 0}}, "resize must be greater than 0"),
        ({"size": {"shortest_edge": 10**9}}, "resize must be at most 16,384"),
        ({"resample": None}, "resample must be a whole number; got None"),
        ({"resample": 17}, "resample must be from 0 to 5"),
        ({"resample": "bicubic"}, "resample must be a whole number"),
        ({"rescale_factor": 0}, "rescale_factor must not be 0"),
        ({"rescale_factor": "x"}, "rescale_factor must be a finite number"),
        ({"round_crop": 1}, "round_crop must be true or false"),
        ({"do_rescale": "no"}, "do_rescale must be true or false"),
        ({"do_center_crop": [1]}, "do_center_crop must be true or false"),
    ],
)
def test_what_cannot_be_followed_is_refused_at_load(tiny, tmp_path, settings, message):
    folder = Path(shutil.copytree(tiny, tmp_path / "clip"))
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(UserError, match=message) as info:
        OpenVocabularyModel(str(folder))
    assert "preprocessor_config.json" in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "theirs", [SiglipImageProcessorPil(size={"height": 48, "width": 48}, resample=2)], ids=["siglip"]
)
def test_siglip_squashes(theirs):
    ours = ImageProcessor.of_transformers(theirs, 48, "here")
    image = photo((90, 40))
    expected = torch.from_numpy(np.asarray(theirs(image, return_tensors="np")["pixel_values"][0]))
    torch.testing.assert_close(ours(image), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        Preprocessing(resize=60),
        Preprocessing(squash=True),
        Preprocessing(resize=63, round_crop=True),
        Preprocessing(squash=True, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ],
    ids=repr,
)
def test_settings_of_a_model_are_saved_with_it(tiny, tmp_path, preprocessing):
    model = OpenVocabularyModel(tiny, ["cat"], preprocessing=preprocessing)
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved").image_processor
    assert again.round_crop == model.image_processor.round_crop
    for size in SIZES:
        torch.testing.assert_close(again(photo(size)), model.image_processor(photo(size)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 9_000), (48, 10_000)])
@pytest.mark.parametrize("short_side", [30, 48, 60])
def test_memory_does_not_grow_with_the_aspect_ratio(size, short_side):
    """A narrow image gives what the plain way gives, to one grey level, and is never enlarged as a whole."""
    ours = ImageProcessor(48, (0, 0, 0), (1 / 255,) * 3, resize=short_side)
    image = photo(size)
    width, height = ours.resized(*size)
    left, top = (width - 48) // 2, (height - 48) // 2
    plain = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 48, top + 48))
    tracemalloc.start()
    pixels = ours(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    difference = np.abs(pixels.numpy() - np.asarray(plain).transpose(2, 0, 1))
    assert difference.max() <= 1.01
    assert (difference > 0.01).mean() < 0.02
    assert peak < 2**20  # NumPy's and torch's; Pillow's are of the size that `resize` is asked for
