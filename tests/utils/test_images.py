import glob
import io
import os
import socket
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ovml.utils.errors import UserError
from ovml.utils.images import EXTENSIONS, find_images, load_image

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
    with pytest.raises(UserError, match="expected a path, bytes, a PIL image or an array, got int"):
        load_image(3)


def test_an_image_of_too_many_pixels_is_named_and_not_decoded(picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the picture has three times as many
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    for source in (picture, picture.read_bytes()):
        with pytest.raises(UserError) as info:
            load_image(source, name="huge.png")
        assert str(info.value).startswith("huge.png: ")
        assert "\n" not in str(info.value)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder of empty files, and the working directory in it."""
    for path in [
        "b/c/z.JPG",
        "b/a.png",
        "b/notes.txt",
        "b/.hidden.png",
        "b/c/.cache/x.png",
        "b/c/y.png",
        "b/c-d/k.gif",
        "b/e/f/a.png",
        "top.png",
        "[1].png",
    ]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*paths):
    return [str(path) for path in find_images(paths)]


def test_folders_are_searched_in_order(tree, picture):
    files = [p for p in (tree / "b").rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()]
    everything = sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(tree).parts))
    assert len(everything) == 5
    assert list(find_images([picture, tree / "b"])) == [picture, *everything]
    assert found("b/c", "top.png", "b/notes.txt", "b/.hidden.png") == [
        "b/c/y.png",
        "b/c/z.JPG",
        "top.png",
        "b/notes.txt",
        "b/.hidden.png",
    ]
    skipped = Counter()
    list(find_images([tree / "b"], skipped))
    assert skipped == {"hidden": 2, ".txt": 1}


def test_a_link_to_itself_is_one_entry_that_cannot_be_read(tree):
    (tree / "b" / "loop.png").symlink_to("loop.png")
    assert found("b") == ["b/a.png", "b/c/y.png", "b/c/z.JPG", "b/c-d/k.gif", "b/e/f/a.png", "b/loop.png"]
    with pytest.raises(UserError, match=r"loop.png: cannot be read \(Too many levels of symbolic links\)"):
        load_image(tree / "b" / "loop.png")


@pytest.fixture
def odd(tmp_path):
    """A pipe, a socket, a device and a name that is too long."""
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.png"))
        yield {
            "pipe": tmp_path / "pipe.png",
            "socket": tmp_path / "socket.png",
            "device": Path("/dev/zero"),
            "long": tmp_path / ("x" * 300 + ".png"),
            "long path": tmp_path / "/".join(["x" * 200] * 30),
        }


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "long", "long path"])
def test_what_is_no_file_is_one_line_and_does_not_hang(odd, kind):
    reason = r"cannot be read \(File name too long\)" if kind.startswith("long") else "not a file; give an image"
    with pytest.raises(UserError, match=reason) as info:
        load_image(odd[kind])
    assert str(info.value).startswith(f"{odd[kind]}: ")
    assert len(str(info.value).splitlines()) == 1
    assert list(find_images([odd[kind]])) == [odd[kind]]


def test_what_is_no_file_in_a_folder_is_passed_over_and_counted(tree, odd):
    skipped = Counter()
    (tree / "b" / "round").symlink_to(tree / "b")
    for name in ("pipe", "socket"):
        odd[name].rename(tree / "b" / f"{name}.png")
    assert len(list(find_images(["b"], skipped))) == 5
    assert skipped == {"hidden": 2, ".txt": 1, "no file": 3}


def test_what_is_not_there_is_named_before_anything_is_given_out(tree):
    (tree / "empty" / "inside").mkdir(parents=True)
    (tree / "empty" / "notes.txt").write_text("")
    (tree / "link").symlink_to(tree / "nowhere.png")
    for path, message in [
        ("empty", "empty: no images in this folder; looked for .apng"),
        ("none", "none: no such file or folder"),
        ("link", "link: no such file or folder"),
        ("b/*.gif", r"b/\*.gif: no file fits this pattern"),
        ("none/*.png", r"none/\*.png: no file fits this pattern"),
    ]:
        with pytest.raises(UserError, match=message):
            find_images(["top.png", path])


PATTERNS = ["*.png", "b/*", "b/*.png", "*/*.png", "b/**/*.png", "**/a.png", "**/?.*", "**/*", "b/**/**/[ay].png"]
PATTERNS += ["**/.*", "**/.cache/*", "*/c/*.JPG", "b/[!a]*", "./b/*.png", "[[]1].png"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("absolute", [False, True])
def test_patterns_find_what_glob_finds(tree, pattern, absolute):
    pattern = f"{tree}/{pattern}" if absolute else pattern
    paths = [Path(p) for p in glob.glob(pattern, recursive=True)]
    folders = [path for path in paths if path.is_dir()]
    inside = [(p, p.relative_to(folder)) for folder in folders for p in folder.rglob("*")]
    shown = [p for p, rest in inside if p.suffix.lower() in EXTENSIONS and not any(x[0] == "." for x in rest.parts)]
    expected = {p for p in (*paths, *shown) if p.is_file()}
    if not expected:
        with pytest.raises(UserError, match="no file fits this pattern"):
            find_images([pattern])
        return
    assert list(find_images([pattern])) == sorted(expected)


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tree):
    assert found("[1].png") == ["[1].png"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tree):
    (tree / "b" / "link.png").symlink_to(tree / "top.png")
    (tree / "b" / "round").symlink_to(tree / "b")
    (tree / "b" / "gone.png").symlink_to(tree / "nowhere.png")
    assert "b/link.png" in found("b")
    assert len(found("b")) == 6


def test_a_folder_is_listed_when_it_is_needed(tmp_path, monkeypatch):
    for i in range(20):
        (tmp_path / f"{i:02d}").mkdir()
        (tmp_path / f"{i:02d}" / "x.png").write_bytes(b"")
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    images = find_images([tmp_path])
    assert next(images) == tmp_path / "00" / "x.png"
    assert len(listed) == 2
    assert len(list(images)) == 19
    assert len(listed) == 21


def test_a_folder_that_cannot_be_listed_is_given_out_itself(tree, monkeypatch):
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "c":
            raise PermissionError
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert found("b") == ["b/a.png", "b/c", "b/c-d/k.gif", "b/e/f/a.png"]
    assert "b/c" in found("**/*.png")
