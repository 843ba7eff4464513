"""Names of emoji, and which of them are unseen: the same on every machine.

Names are the English ones of PyPI's `emoji`. A fifth of them is unseen, by a hash of the name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

LAST_EMOJI = 15.0
"""Version of Unicode's emoji after which none is taken: fonts and picture sets do not have them all."""

MIN_NAMES = 10
"""Least number of names of a world."""

_ONE_O_CLOCK, _TWELVE_THIRTY = 0x1F550, 0x1F567


def is_unseen(name: str) -> bool:
    """Whether a name's label is withheld from supervised training: a fifth of all names, the same everywhere.

    >>> [name for name in ("anchor", "rocket", "tulip", "violin") if is_unseen(name)]
    ['anchor']
    """
    return _hash(name)[0] % 5 == 0


def _hash(name: str) -> tuple[int, int]:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


@lru_cache(maxsize=1)
def _all_names() -> dict[str, str]:
    try:
        from emoji import EMOJI_DATA, STATUS
    except ImportError as error:
        raise UserError("the emoji world takes its names from the package emoji; pip install emoji") from error
    names = {}
    for emoji, facts in EMOJI_DATA.items():
        bare = emoji.replace("\ufe0f", "")
        # Skin tones, countries' flags and keycaps are sequences of several characters.
        if facts["status"] == STATUS["fully_qualified"] and len(bare) == 1 and facts["E"] <= LAST_EMOJI:
            name = facts["en"].strip(":").replace("_", " ").replace("\u2019", "'")
            if not _ONE_O_CLOCK <= ord(bare) <= _TWELVE_THIRTY and "keycap" not in name:
                names[name] = bare
    return names


def emoji_names(num_names: int | None = None) -> dict[str, str]:
    """Names of emoji and their characters, seen names first, each part in the order of the alphabet.

    Left out are skin tones, countries' flags, clock faces, keycaps and all other sequences of characters.

    Args:
        num_names: Take so many, chosen by a hash of the name: a smaller number is part of a larger one. Default: all,
            about 1,350.

    Raises:
        UserError: The package `emoji` is missing, or there are not so many names.
    """
    names = _all_names()
    if num_names is not None and not MIN_NAMES <= num_names <= len(names):
        raise UserError(f"data.num_names must be from {MIN_NAMES} to {len(names)}; got {num_names}")
    chosen = sorted(names, key=lambda name: _hash(name)[1])[:num_names]
    return {name: names[name] for name in sorted(chosen, key=lambda name: (is_unseen(name), name))}


def emoji_vocabulary(names: Sequence[str]) -> LabelVocabulary:
    """The labels of a world of these names, which begin with the seen ones as in `emoji_names`.

    >>> emoji_vocabulary(["rocket", "violin", "anchor"]).unseen
    ('anchor',)
    """
    return LabelVocabulary(
        tuple(name for name in names if not is_unseen(name)), tuple(name for name in names if is_unseen(name))
    )
