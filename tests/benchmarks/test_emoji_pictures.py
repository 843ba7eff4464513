"""Pictures of emoji from folders and fonts, cut once and kept."""

import errno
import os

import fake_emoji
import numpy as np
import pytest
from fake_emoji import EMOJIS, NAMES
from PIL import Image, ImageDraw
from worlds.emoji import pictures as module
from worlds.emoji.pictures import FONTS, EmojiPictures, emoji_pictures, picture_files

from ovml.utils.errors import UserError

FONT = next((path for path in map(os.path.expanduser, FONTS) if os.path.isfile(path)), None)


@pytest.fixture
def folder(tmp_path):
    return fake_emoji.write(tmp_path / "pictures")


@pytest.fixture
def cut(folder, tmp_path):
    return lambda **changed: emoji_pictures(folder, tuple(EMOJIS.values()), tmp_path / "cache", **changed)


def test_files_are_found_by_code_point_in_every_layout(tmp_path):
    names = {
        "1f600.png": "\U0001f600",
        "2764-fe0f.webp": "\u2764",
        "ae-fe0f.webp": "\xae",
        "00a9.png": "\xa9",
        "emoji_u1f601.png": "\U0001f601",
        "emoji_u2600_fe0f.png": "\u2600",
        "1F602.PNG": "\U0001f602",
    }
    others = ["1f468-200d-1f33e.png", "1f44b-1f3fb.webp", "readme.md", "index.png", "sheet_64.png", "1f603.svg"]
    others.append("fffffffffffff.png")
    for name in (*names, *others):
        (tmp_path / name).touch()
    assert {character: path.name for character, path in picture_files(tmp_path).items()} == {
        character: name for name, character in names.items()
    }


def test_a_picture_is_cut_to_what_shows(cut):
    pictures = cut()
    assert pictures.pixels.shape == (len(NAMES), 40, 40, 4)
    assert pictures.pixels.dtype == np.uint8
    assert pictures.present.all()
    for name, pixels in zip(NAMES, pictures.pixels, strict=True):  # drawn 40 x 40 within 64 x 64
        assert (pixels == fake_emoji.colour(name)).all()


def test_a_long_picture_stands_in_the_middle(tmp_path):
    picture = Image.new("RGBA", (200, 100))
    ImageDraw.Draw(picture).rectangle((20, 40, 99, 59), fill="red")  # 80 x 20
    picture.save(tmp_path / "1f600.png")
    pixels = emoji_pictures(tmp_path, ["\U0001f600"], tmp_path).pixels[0]
    rows = pixels[..., 3].any(1)
    assert rows.nonzero()[0].tolist() == list(range(15, 25))
    assert pixels[20, :, 3].min() > 200


def test_pictures_are_kept_and_mapped(cut, folder, monkeypatch):
    first = cut()
    assert isinstance(first.pixels, np.memmap)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        assert (cut().pixels == first.pixels).all()
    assert EmojiPictures.open(first.folder).present.all()
    path = picture_files(folder)[EMOJIS["acorn"]]
    Image.new("RGBA", (50, 50), "white").save(path)
    os.utime(path, ns=(1, 1))
    again = cut()
    assert again.folder != first.folder
    assert (again.pixels[0] == 255).all()
    assert (again.pixels[1:] == first.pixels[1:]).all()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
def test_an_interrupted_cut_leaves_nothing(cut, tmp_path, monkeypatch, error):
    fit, calls = module._fit, []

    def failing(picture):
        calls.append(1)
        if len(calls) == 5:
            raise error
        return fit(picture)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_fit", failing)
        with pytest.raises((OSError, KeyboardInterrupt)):
            cut()
    assert list((tmp_path / "cache").iterdir()) == []
    assert cut().present.all()


def test_a_picture_that_is_missing_is_counted(cut, folder, caplog):
    picture_files(folder)[EMOJIS["comet"]].unlink()
    pictures = cut()
    assert np.flatnonzero(~pictures.present).tolist() == [NAMES.index("comet")]
    assert not pictures.pixels[NAMES.index("comet")].any()
    assert "no picture of 1 of 26 emoji" in caplog.text


def error_of(function):
    with pytest.raises(UserError) as caught:
        function()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_folder_without_pictures_says_which_package(tmp_path, cut, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "emoji-datasource-twitter" in error_of(lambda: emoji_pictures(empty, ["\u2764"], tmp_path))
    for name in NAMES[:2]:
        picture_files(folder)[EMOJIS[name]].unlink()
    assert "24 of 26 emoji only" in error_of(cut)


def test_a_missing_source_says_which_package(tmp_path, monkeypatch):
    said = error_of(lambda: emoji_pictures(tmp_path / "none.ttf", ["\u2764"], tmp_path))
    assert "none.ttf" in said
    assert "fonts-noto-color-emoji" in said
    monkeypatch.setattr(module, "FONTS", ())
    said = error_of(lambda: emoji_pictures(None, ["\u2764"], tmp_path))
    assert "fonts-noto-color-emoji" in said
    assert "--data.font" in said


def test_a_broken_source_is_named(cut, folder, tmp_path):
    text = tmp_path / "text.ttf"
    text.write_text("no font")
    assert "text.ttf: not a colour bitmap font" in error_of(lambda: emoji_pictures(text, ["\u2764"], tmp_path))
    path = picture_files(folder)[EMOJIS["drum"]]
    path.write_bytes(path.read_bytes()[:60])
    assert f"{path.name}: broken image" in error_of(cut)


@pytest.mark.skipif(FONT is None, reason="Noto Color Emoji is not here: apt install fonts-noto-color-emoji")
def test_the_font_draws_emoji(tmp_path, caplog):
    emojis = ["\U0001f600", "\U0001f7e5", "\u2764\ufe0f", *map(chr, range(0x1F400, 0x1F412)), "\U0010fffd"]
    pictures = emoji_pictures(None, emojis, tmp_path)
    assert pictures.present.tolist() == [True] * 21 + [False]  # the last is no character
    assert "no picture of 1 of 22" in caplog.text
    red, green, blue, alpha = pictures.pixels[:3, 20, 20].T.astype(int)
    assert (alpha == 255).all()
    assert (red > blue + 60).all()  # a yellow face, a red square, a red heart
    assert (green[1:] < 100).all()
    assert pictures.pixels[0, 0, 0, 3] == 0
    assert len({picture.tobytes() for picture in pictures.pixels}) == 22
