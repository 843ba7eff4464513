"""Which labels are unseen, and which training images are held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary, label_key


def choose_labels(
    trained: Iterable[str], evaluated: Iterable[str], unseen: Sequence[str] | int, order: Sequence[str] = ()
) -> tuple[LabelVocabulary, list[str]]:
    """Divide labels into seen and unseen ones.

    Args:
        trained: Labels of the training images.
        evaluated: Labels of the validation and test images.
        unseen: Labels to withhold from training; or how many of those that both have, always the same ones.
        order: Labels in the order wanted; others follow by name.

    Returns:
        The vocabulary; and the labels that no training image has, which are unseen as well.

    Raises:
        UserError: No image has one of the unseen labels, or none is left to train.

    >>> choose_labels(["sea", "palm", "moon"], ["sea", "palm", "star"], unseen=1)
    (LabelVocabulary(seen=('moon', 'palm'), unseen=('sea', 'star'), texts=('moon', 'palm', 'sea', 'star')), ['star'])
    """
    in_training, in_evaluation = _by_key(trained), _by_key(evaluated)
    name_of = in_evaluation | in_training
    if isinstance(unseen, int):
        shared = in_training.keys() & in_evaluation.keys()
        if unseen > len(shared):
            raise UserError(f"unseen must be from 1 to {len(shared)}, the labels of training and test; got {unseen}")
        withheld = set(sorted(shared, key=lambda key: hashlib.sha256(key.encode()).digest())[:unseen])
    else:
        withheld = set(map(label_key, unseen))
        if missing := [name for name in unseen if label_key(name) not in name_of]:
            raise UserError(f"unseen: no image has the label {missing[0]!r}; correct or remove it")
    alone = in_evaluation.keys() - in_training.keys() - withheld
    place = {label_key(name): position for position, name in enumerate(order)}
    keys = sorted(name_of, key=lambda key: (place.get(key, len(place)), key))
    seen = [name_of[key] for key in keys if key not in withheld | alone]
    if not seen:
        raise UserError("no label is left to train; give training images with labels, or fewer unseen ones")
    vocabulary = LabelVocabulary(tuple(seen), tuple(name_of[key] for key in keys if key in withheld | alone))
    return vocabulary, [name_of[key] for key in keys if key in alone]


def _by_key(names: Iterable[str]) -> dict[str, str]:
    """Names that differ in case or blanks are one label, written as the first in alphabetical order."""
    return {label_key(name): name for name in sorted(set(names), reverse=True)}


def held_out_rows(labels: Sequence[Sequence[str]], share: float) -> list[int]:
    """Rows to hold out: the same ones in every run, such that every label keeps one of the other rows.

    >>> held_out_rows([["cat"], ["cat"], ["dog"], ["cat"], ["dog"], ["moon"]], 0.5)
    [0, 2, 3]
    """
    keys = _keys(labels)
    left = Counter(key for own in keys for key in own)
    held: list[int] = []
    for row in np.random.default_rng(0).permutation(len(labels)).tolist():
        if len(held) < max(1, round(share * len(labels))) and all(left[key] > 1 for key in keys[row]):
            held.append(row)
            left.subtract(keys[row])
    return sorted(held)


def few_rows(labels: Sequence[Sequence[str]], shots: int) -> list[int]:
    """Rows such that each label has at least `shots` images, or all that it has: the same ones in every run.

    A smaller number of shots gives some of the rows of a larger one. A row with a label that lacks images is taken,
    whatever other labels it has, so that frequent labels have more images.

    >>> few_rows([["cat"], ["cat"], ["dog", "cat"], ["cat"], []], 1)
    [2]
    """
    keys = _keys(labels)
    counts: Counter[str] = Counter()
    taken: set[int] = set()
    order = np.random.default_rng(0).permutation(len(labels)).tolist()
    for target in range(1, shots + 1):
        for row in order:
            if row not in taken and any(counts[key] < target for key in keys[row]):
                taken.add(row)
                counts.update(keys[row])
    return sorted(taken)


def _keys(labels: Sequence[Sequence[str]]) -> list[set[str]]:
    return [set(map(label_key, names)) for names in labels]
