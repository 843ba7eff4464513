"""A stand-in for PyPI's `emoji` and folders of drawn pictures, in the layouts of the real ones."""

import sys
from types import ModuleType

from PIL import Image, ImageDraw
from worlds.emoji import names as emoji_names

NAMES = (
    "acorn", "balloon", "comet", "drum", "egg", "left arrow", "fern", "goose", "harp", "iron", "jug", "kite", "lamp",
    "mango", "newt", "oboe", "plum", "quill", "robot", "sledge", "tent", "urn", "vase", "play button", "yak", "zebra",
)  # fmt: skip
EMOJIS = {name: chr(0x1F600 + i) for i, name in enumerate(NAMES)}

MODULE = f"""
STATUS = {{"component": 1, "fully_qualified": 2, "minimally_qualified": 3, "unqualified": 4}}
EMOJI_DATA = {{
    emoji: {{"en": f":{{name.replace(' ', '_')}}:", "status": 2, "E": 1}} for name, emoji in {EMOJIS!r}.items()
}}
EMOJI_DATA |= {{
    chr(0x1F613) + chr(0xFE0F): {{"en": ":sledge:", "status": 2, "E": 0.6}},
    chr(0x2709): {{"en": ":unqualified:", "status": 4, "E": 1}},
    chr(0x1F44B) + chr(0x1F3FB): {{"en": ":hand_light_skin_tone:", "status": 2, "E": 1}},
    chr(0x1F3FB): {{"en": ":light_skin_tone:", "status": 1, "E": 1}},
    chr(0x1F1E6) + chr(0x1F1E8): {{"en": ":Ascension_Island:", "status": 2, "E": 2}},
    "7" + chr(0xFE0F) + chr(0x20E3): {{"en": ":keycap_7:", "status": 2, "E": 0.6}},
    chr(0x1F51F): {{"en": ":keycap_10:", "status": 2, "E": 0.6}},
    chr(0x1F550): {{"en": ":one_o\\u2019clock:", "status": 2, "E": 0.6}},
    chr(0x1FAC8): {{"en": ":too_new:", "status": 2, "E": 17}},
}}
del EMOJI_DATA[chr(0x1F613)]
"""


def install(monkeypatch):
    """Put the stand-in in the package's place."""
    module = ModuleType("emoji")
    exec(MODULE, module.__dict__)
    monkeypatch.setitem(sys.modules, "emoji", module)
    monkeypatch.setattr(emoji_names, "_all_names", emoji_names._all_names.__wrapped__)


def colour(name):
    i = NAMES.index(name)
    return (60 + 75 * (i % 3), 60 + 75 * (i // 3 % 3), 60 + 75 * (i // 9 % 3), 255)


def write(folder, names=NAMES, shape="rectangle"):
    """Draw a picture for each name: file names change from one of the usual forms to the next."""
    folder.mkdir()
    forms = ("{:x}.png", "{:x}-fe0f.webp", "emoji_u{:x}.png", "{:X}.png")
    for i, name in enumerate(names):
        picture = Image.new("RGBA", (64, 64))
        getattr(ImageDraw.Draw(picture), shape)((10, 12, 49, 51), fill=colour(name))
        picture.save(folder / forms[i % 4].format(ord(EMOJIS[name])), lossless=True)
    return folder
