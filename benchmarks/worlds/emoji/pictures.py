"""Pictures of emoji from what a machine has: a colour font, or a folder of pictures named by code point.

They are cut once to small squares and kept as one array on disk, which is opened memory-mapped. None is part of ovml.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ovml.data.cache import cached_folder
from ovml.utils.errors import UserError
from ovml.utils.progress import track

logger = logging.getLogger(__name__)

PICTURE_SIZE = 40
"""Side of the kept pictures in pixels."""

FONT_SIZE = 109
"""The one size that colour bitmap fonts, such as Noto Color Emoji, have."""

MAX_MISSING = 0.05
"""Greatest share of the emoji that a source may lack."""

PICTURES_VERSION = 1
"""Raised whenever the same source would give other pictures; part of the cache's key."""

FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",  # Debian, Ubuntu
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",  # Arch
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",  # Fedora
    "/usr/local/share/fonts/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
    "~/Library/Fonts/NotoColorEmoji.ttf",
)
"""Where the font is looked for."""

_WHERE_FROM = "apt install fonts-noto-color-emoji"
_VARIATION = "\ufe0f"
_UNASSIGNED = "\U0010fffd"


@dataclass(frozen=True)
class EmojiPictures:
    """Small pictures of emoji, one for each that was asked for.

    Attributes:
        pixels: `[N, 40, 40, 4]` uint8, RGBA, memory-mapped; empty where the source has no picture.
        present: `[N]` bool, whether there is one.
        folder: Where both are kept.
    """

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    present: np.ndarray[Any, np.dtype[np.bool_]]
    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> EmojiPictures:
        """Open what `emoji_pictures` has made."""
        folder = Path(folder)
        return cls(np.load(folder / "pixels.npy", mmap_mode="r"), np.load(folder / "present.npy"), folder)


def emoji_pictures(
    source: str | Path | None, emojis: Sequence[str], cache_dir: str | Path | None = None
) -> EmojiPictures:
    """Cut the pictures of some emoji out of a font or a folder, or open those cut before.

    Args:
        source: A colour bitmap font, or a folder of PNG or WebP pictures named by code point in hexadecimal:
            `1f600.png`, `2764-fe0f.webp`, `emoji_u1f600.png`. Default: Noto Color Emoji in one of `FONTS`.
        emojis: One character each, with or without a variation selector.
        cache_dir: See `ovml.data.cache.cache_root`. The pictures are made anew when the source changes.

    Raises:
        UserError: The source is not there, cannot be read, or lacks over 5 % of the emoji; or the cache cannot be
            written.
    """
    path = Path(source).expanduser() if source else default_font()
    bare = [emoji.replace(_VARIATION, "") for emoji in emojis]
    if path.is_dir():
        files = picture_files(path)
        inputs = [files[emoji] for emoji in bare if emoji in files]
        _check_count(path, len(inputs), len(bare))
    elif path.is_file():
        inputs = [path]
    else:
        raise UserError(f"{path}: no such font or folder of emoji pictures; {_WHERE_FROM}, or give another --data.font")
    settings = {"emojis": bare, "version": PICTURES_VERSION, "size": PICTURE_SIZE}
    with cached_folder(cache_dir, "emoji-pictures", inputs, settings) as (folder, aside):
        if aside is not None:
            draw = _from_folder(files) if path.is_dir() else _from_font(path)
            present = np.zeros(len(bare), dtype=bool)
            shape = (len(bare), PICTURE_SIZE, PICTURE_SIZE, 4)
            pixels = np.lib.format.open_memmap(aside / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
            for i, emoji in enumerate(track(bare, "cutting emoji", total=len(bare))):
                picture = draw(emoji)
                if picture is not None and (box := picture.getchannel("A").getbbox()):
                    pixels[i], present[i] = np.asarray(_fit(picture.crop(box))), True
            _check_count(path, int(present.sum()), len(bare))
            pixels.flush()
            del pixels
            np.save(aside / "present.npy", present)
    found = EmojiPictures.open(folder)
    if missing := int((~found.present).sum()):
        logger.warning("%s: no picture of %d of %d emoji; no scene shows them", path, missing, len(bare))
    return found


def default_font() -> Path:
    """Noto Color Emoji where it usually lies.

    Raises:
        UserError: It is in none of `FONTS`.
    """
    for font in FONTS:
        if (path := Path(font).expanduser()).is_file():
            return path
    raise UserError(
        f"NotoColorEmoji.ttf: not in the usual places; {_WHERE_FROM}, or give a font or a folder of pictures "
        "(--data.font PATH)"
    )


def picture_files(folder: Path) -> dict[str, Path]:
    """The pictures of single characters in a folder, by character; other files and sequences are passed over.

    Args:
        folder: Laid out as `img/twitter/64` of npm's `emoji-datasource-twitter` or `assets` of
            `@lobehub/fluent-emoji-3d`.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".png", ".webp"):
            codes = path.stem.lower().removeprefix("emoji_u").replace("_", "-").split("-")
            try:
                points = [code for code in (int(code, 16) for code in codes) if code != ord(_VARIATION)]
                if len(points) == 1:
                    found.setdefault(chr(points[0]), path)
            except (ValueError, OverflowError):
                continue
    return found


def _check_count(path: Path, found: int, wanted: int) -> None:
    if wanted - found > MAX_MISSING * wanted:
        hint = (
            "give the folder whose files are named by code point (1f600.png), such as img/twitter/64 of npm's "
            "emoji-datasource-twitter or assets of @lobehub/fluent-emoji-3d"
            if path.is_dir()
            else f"give a colour emoji font: {_WHERE_FROM}"
        )
        raise UserError(f"{path}: pictures of {found:,} of {wanted:,} emoji only; {hint}")


def _fit(picture: Image.Image) -> Image.Image:
    """In the middle of a square, its long side filled."""
    scale = PICTURE_SIZE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    square = Image.new("RGBA", (PICTURE_SIZE, PICTURE_SIZE))
    place = ((PICTURE_SIZE - size[0]) // 2, (PICTURE_SIZE - size[1]) // 2)
    square.paste(picture.resize(size, Image.Resampling.LANCZOS), place)
    return square


def _from_folder(files: dict[str, Path]) -> Callable[[str], Image.Image | None]:
    def draw(emoji: str) -> Image.Image | None:
        if emoji not in files:
            return None
        try:
            with Image.open(files[emoji]) as image:
                return image.convert("RGBA")
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{files[emoji]}: broken image; install its package anew or take the file away") from error

    return draw


def _from_font(path: Path) -> Callable[[str], Image.Image | None]:
    try:
        font = ImageFont.truetype(str(path), FONT_SIZE)
        side = 2 * FONT_SIZE

        def render(text: str) -> Image.Image:
            canvas = Image.new("RGBA", (side, side))
            place = (side // 2, side // 2)
            ImageDraw.Draw(canvas).text(place, text, font=font, anchor="mm", embedded_color=True)
            return canvas

        nothing = render(_UNASSIGNED).tobytes()
    except OSError as error:
        raise UserError(
            f"{path}: not a colour bitmap font of {FONT_SIZE} pixels ({error}); {_WHERE_FROM}, or give a folder of "
            "pictures"
        ) from error

    def draw(emoji: str) -> Image.Image | None:
        picture = render(emoji)
        return None if picture.tobytes() == nothing else picture

    return draw
