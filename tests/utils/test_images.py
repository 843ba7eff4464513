import io
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ovml.utils.errors import UserError
from ovml.utils.images import load_image

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


@pytest.mark.parametrize("brightest", [255, 300, 65535])
@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_the_scale_of_sixteen_bits_does_not_depend_on_the_brightest_pixel(tmp_path, suffix, brightest):
    values = np.linspace(0, brightest, 768).astype(np.uint16).reshape(24, 32)
    if suffix == "pgm":
        (tmp_path / "x.pgm").write_bytes(b"P5 32 24 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    close(load_image(tmp_path / f"x.{suffix}"), grey(values // 257), tolerance=0)


FLOATS = np.linspace(0, 1, 768, dtype=np.float32).reshape(24, 32)


@pytest.mark.parametrize("kind", ["array", "image", "file"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (FLOATS, None),
        (FLOATS / 2, None),
        (FLOATS * 255, "floats outside of 0..1"),
        (FLOATS - 0.5, "floats outside of 0..1"),
        (np.where(FLOATS > 0.5, np.float32("nan"), FLOATS), "floats outside of 0..1"),
        ((FLOATS * 1000).astype(np.int32), "expected uint8|32-bit integers"),
    ],
)
def test_floats_are_shares_and_other_scales_are_refused(tmp_path, kind, values, message):
    source = values
    if kind != "array":
        source = Image.fromarray(values)
    if kind == "file":
        source.save(tmp_path / "x.tif")
        source = tmp_path / "x.tif"
    if message is None:
        close(load_image(source), grey((values * 255).round()), tolerance=0)
    else:
        with pytest.raises(UserError, match=message) as info:
            load_image(source)
        assert "\n" not in str(info.value)


def test_sixteen_bits_take_no_more_than_a_few_bytes_a_pixel(tmp_path):
    Image.fromarray(np.zeros((2000, 2000), np.uint16)).save(tmp_path / "x.png")
    tracemalloc.start()
    load_image(tmp_path / "x.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2000 * 2000


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


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey(RAMP)).save(tmp_path / f"x.{suffix}", exif=exif, quality=100)
    with Image.open(tmp_path / f"x.{suffix}") as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape[:2] == ((32, 24) if orientation in range(5, 9) else (24, 32))
    close(load_image(tmp_path / f"x.{suffix}"), expected, tolerance=0)


@pytest.mark.parametrize("damage", [b"", b"\0" * 9, b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + b"\1" * 40])
def test_damaged_metadata_do_not_decide_over_the_pixels(tmp_path, damage):
    file = io.BytesIO()
    Image.fromarray(grey(RAMP)).save(file, "JPEG", quality=100)
    block = b"Exif\0\0" + damage
    segment = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
    close(load_image(file.getvalue()[:2] + segment + file.getvalue()[2:]), grey(RAMP))


def test_formats_that_start_programs_are_not_read(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n")
    with pytest.raises(UserError, match="not an image that Pillow can read"):
        load_image(tmp_path / "x.jpg")


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
    with pytest.raises(
        UserError, match="image: expected a path, bytes, an open file, a PIL image, an array or a tensor, got int"
    ):
        load_image(3)


def test_an_image_of_too_many_pixels_is_named_and_not_decoded(picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the picture has three times as many
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    for source in (picture, picture.read_bytes()):
        with pytest.raises(UserError) as info:
            load_image(source, name="huge.png")
        assert str(info.value).startswith("huge.png: ")
        assert "\n" not in str(info.value)


VALUES = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]])  # [3, H, W]


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", ["[3, H, W]", "[4, H, W]", "[1, H, W]", "[H, W]"])
def test_tensors_have_their_channels_first(dtype, shape):
    opaque = np.concatenate([VALUES, np.full_like(RAMP, 255)[None]])
    values = {"[3, H, W]": VALUES, "[4, H, W]": opaque, "[1, H, W]": RAMP[None], "[H, W]": RAMP}[shape]
    tensor = torch.from_numpy(values.copy())
    if dtype != "uint8":
        tensor = (tensor / 255).to(getattr(torch, dtype)).requires_grad_()
    expected = VALUES.transpose(1, 2, 0) if shape in ("[3, H, W]", "[4, H, W]") else grey(RAMP)
    close(load_image(tensor), expected, tolerance={"bfloat16": 1, "float16": 1}.get(dtype, 0))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"expected a tensor \[3, H, W\], .* got shape \[2, 3, 8, 8\]"),
        (torch.zeros(8, 8, 3), r"got shape \[8, 8, 3\]"),
        (torch.zeros(3, 0, 8), "got shape"),
        (torch.zeros(()), r"got shape \[\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "expected uint8, or floats in 0..1, got int64"),
        (torch.full((3, 8, 8), 2.0), "floats outside of 0..1"),
        (torch.full((3, 8, 8), float("nan")), "floats outside of 0..1, or NaN"),
        (torch.zeros(3, 8, 8, device="meta"), "broken image"),
    ],
)
def test_wrong_tensors_are_refused(tensor, message):
    with pytest.raises(UserError, match=f"^image: .*{message}") as info:
        load_image(tensor)
    assert len(str(info.value).splitlines()) == 1


def test_no_image_needs_torch(picture):
    code = f"import sys; from ovml.utils.images import load_image; load_image({str(picture)!r})"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


class Drip(io.RawIOBase):
    """A raw file that gives few bytes at a time."""

    def __init__(self, content):
        self.file = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.file.readinto(memoryview(buffer)[:100])


@pytest.mark.parametrize("kind", ["BytesIO", "file", "raw file", "drip"])
def test_open_files_are_read_from_where_they_are_and_stay_open(picture, tmp_path, kind):
    content = picture.read_bytes()
    (tmp_path / "x.bin").write_bytes(b"header" + content)
    file = {
        "BytesIO": lambda: io.BytesIO(b"header" + content),
        "file": lambda: (tmp_path / "x.bin").open("rb"),
        "raw file": lambda: (tmp_path / "x.bin").open("rb", buffering=0),
        "drip": lambda: Drip(b"header" + content),
    }[kind]()
    with file:
        file.read(6)
        close(load_image(file), np.asarray(load_image(picture)), tolerance=0)
        assert not file.closed
        assert file.read() == b""


def test_files_that_cannot_be_read_are_one_line(picture, tmp_path, monkeypatch):
    with open(tmp_path / "out.png", "wb") as writing, open(picture, encoding="latin-1") as text:
        closed = io.BytesIO(picture.read_bytes())
        closed.close()
        for file, message in [
            (writing, f"{tmp_path}/out.png: cannot be read"),
            (text, f"{picture}: cannot be read"),
            (io.StringIO("text"), "image: cannot be read"),
            (closed, "image: cannot be read (I/O operation on closed file)"),
            (io.BytesIO(), "image: not an image that Pillow can read"),
        ]:
            with pytest.raises(UserError) as info:
                load_image(file)
            assert str(info.value).startswith(message)
            assert len(str(info.value).splitlines()) == 1
    monkeypatch.setattr("ovml.utils.images.MOST_BYTES", 1000)
    with open("/dev/zero", "rb") as endless, pytest.raises(UserError, match="/dev/zero: larger than"):
        load_image(endless)
