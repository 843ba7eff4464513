import numpy as np
import pytest
from PIL import Image

from ovml.errors import UserError
from ovml.images import find_images, load_image

RAMP = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (24, 1))


def close(image, expected, tolerance=2):
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - expected.astype(int)).max() <= tolerance


def grey(values):
    return np.repeat(values[..., None], 3, axis=2)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "LA", "CMYK", "YCbCr"])
def test_modes_become_rgb(tmp_path, mode):
    suffix = {"CMYK": "tiff", "YCbCr": "jpg"}.get(mode, "png")
    values = np.where(RAMP > 127, 255, 0).astype(np.uint8) if mode == "1" else RAMP
    source = Image.fromarray(values if mode == "P" else grey(values))  # RGB to P would dither
    source.convert(mode).save(tmp_path / f"x.{suffix}")
    close(load_image(tmp_path / f"x.{suffix}"), grey(values), tolerance=4)


def test_sixteen_bits_keep_their_range(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "x.png")
    close(load_image(tmp_path / "x.png"), grey(RAMP))


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[:4, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "x.png")
    close(load_image(tmp_path / "x.png"), np.repeat([[0], [255]], 4, axis=0)[..., None] * np.ones((8, 8, 3)))


def test_transparent_palette_is_laid_on_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "x.png", transparency=0)
    close(load_image(tmp_path / "x.png"), np.full((4, 4, 3), 255))


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(grey(RAMP)).save(tmp_path / "x.png", exif=exif)
    close(load_image(tmp_path / "x.png"), grey(np.rot90(RAMP, -1)))


@pytest.mark.parametrize(
    "array", [RAMP, grey(RAMP), RAMP[..., None], RAMP / 255, np.dstack([grey(RAMP), np.full_like(RAMP, 255)])]
)
def test_arrays(array):
    close(load_image(array), grey(RAMP))


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros((2, 2, 7)), np.zeros((0, 4)), np.zeros((4, 4), dtype=np.int64)]
)
def test_wrong_arrays_are_refused(array):
    with pytest.raises(UserError, match="image: expected"):
        load_image(array)


def test_bad_files_are_named(tmp_path, picture):
    text, broken = tmp_path / "notes.png", tmp_path / "broken.png"
    text.write_text("no image")
    broken.write_bytes(picture.read_bytes()[:400])
    for path, message in [
        (text, "not an image"),
        (broken, "broken image"),
        (tmp_path / "none.png", "no such file"),
    ]:
        with pytest.raises(UserError, match=f"{path.name}: {message}"):
            load_image(path)
    with pytest.raises(UserError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(UserError, match="expected a path, bytes, a PIL image or an array, got int"):
        load_image(3)


def test_folders_are_searched_in_order(tmp_path, picture):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "z.JPG").write_bytes(b"")
    (tmp_path / "b" / "a.png").write_bytes(b"")
    (tmp_path / "b" / "notes.txt").write_text("")
    assert find_images([picture, tmp_path / "b"]) == [
        picture,
        tmp_path / "b" / "a.png",
        tmp_path / "b" / "c" / "z.JPG",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in this folder"):
        find_images([tmp_path / "empty"])
    with pytest.raises(UserError, match="no such file or folder"):
        find_images([tmp_path / "none"])
