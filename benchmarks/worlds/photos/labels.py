"""Labels of a photograph from its captions: what at least two of them name, by a written list of words and phrases.

`PYTHONPATH=benchmarks python -m worlds.photos.labels` prints precision and recall on photographs checked by eye.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ovml.utils.yaml import load_yaml
from ovml.vocabulary import LabelVocabulary
from worlds.photos.photographs import words_of

LIST = Path(__file__).with_name("labels.yaml")
CHECKED = Path(__file__).with_name("checked.csv")
"""Labels of 100 photographs, every 80th of the three splits, checked by eye; see `Checked`."""
LEAST = 2
"""Captions of a photograph that must name a label."""
_NOUN_MARK = "+"


@dataclass(frozen=True)
class LabelList:
    """The labels, and what names them.

    Attributes:
        seen: Labels of the supervised training.
        unseen: Labels that are withheld from it.
        phrases: The labels that each phrase, as lemmas, names, those above them included.
        nouns: Words that count only behind one of `before`.
        before: Determiners, numbers, prepositions and adjectives.
        colours: Adjectives that do not name a label behind "white and".
        plurals: Singular of irregular plurals.
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    phrases: Mapping[tuple[str, ...], frozenset[str]]
    nouns: frozenset[str]
    before: frozenset[str]
    colours: frozenset[str]
    plurals: Mapping[str, str]

    @cached_property
    def longest(self) -> int:
        """Words of the longest phrase."""
        return max(map(len, self.phrases))

    @property
    def vocabulary(self) -> LabelVocabulary:
        """Seen labels, then the unseen ones."""
        return LabelVocabulary(self.seen, self.unseen)

    def lemmas(self, caption: str) -> list[str]:
        """The words of a caption in the singular, by a rule and the list of irregular ones."""
        return [self.plurals.get(word) or _singular(word) for word in words_of(caption)]

    def named(self, caption: str) -> set[str]:
        """The labels that a caption names, longer phrases first, and those above them."""
        words, found, place = self.lemmas(caption), set[str](), 0
        while place < len(words):
            for length in range(min(self.longest, len(words) - place), 0, -1):
                phrase = tuple(words[place : place + length])
                if phrase in self.phrases and self._is_meant(words, place, length):
                    found |= self.phrases[phrase]
                    place += length
                    break
            else:
                place += 1
        return found

    def _is_meant(self, words: Sequence[str], place: int, length: int) -> bool:
        if length == 1 and words[place] in self.nouns:
            return place > 0 and words[place - 1] in self.before
        two_colours = place > 1 and words[place - 1] == "and" and {words[place], words[place - 2]} <= self.colours
        return not two_colours

    def labels_of(self, captions: Iterable[str]) -> list[str]:
        """The labels that at least two captions of a photograph name, in the order of the vocabulary."""
        counts = Counter(label for caption in captions for label in self.named(caption))
        return [label for label in (*self.seen, *self.unseen) if counts[label] >= LEAST]


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


@cache
def label_list(file: Path = LIST) -> LabelList:
    """The written list.

    >>> found = label_list()
    >>> sorted(found.named("Two small dogs play with a tennis ball on the beach ."))
    ['ball', 'beach', 'dog', 'tennis ball']
    >>> sorted(found.named("A girl slides down the yellow slide ."))
    ['child', 'girl', 'slide']
    """
    content: dict[str, Any] = load_yaml(file.read_text(encoding="utf-8"))
    parents: dict[str, list[str]] = {}
    for parent, children in content["above"].items():
        for child in children:
            parents.setdefault(child, []).append(parent)

    def with_parents(label: str) -> set[str]:
        return {label}.union(*(with_parents(parent) for parent in parents.get(label, ())))

    phrases: dict[tuple[str, ...], set[str]] = {}
    nouns = set()
    for label, others in content["names"].items():
        verbs_too = {other[1:] for other in others if other.startswith(_NOUN_MARK)}
        nouns |= verbs_too
        for phrase in (label, *(other.removeprefix(_NOUN_MARK) for other in others)):
            phrases.setdefault(tuple(phrase.split()), set()).update(with_parents(label))
    phrases |= {tuple(phrase.split()): set() for phrase in content["nothing"]}
    unseen = tuple(content["unseen"])
    words = {name: frozenset(content[name].split()) for name in ("determiners", "colours", "adjectives")}
    return LabelList(
        tuple(label for label in content["names"] if label not in unseen),
        unseen,
        {phrase: frozenset(labels) for phrase, labels in phrases.items()},
        frozenset(nouns),
        words["determiners"] | words["colours"] | words["adjectives"],
        words["colours"],
        content["plurals"],
    )


@dataclass(frozen=True)
class Checked:
    """A photograph whose labels were checked by eye, once, in 128 pixels.

    Attributes:
        split: Its split.
        row: Its row there.
        right: Labels of the rule that it shows.
        wrong: Labels of the rule that it does not show, or that nobody can see.
        missing: Other labels of the list that it clearly shows.
    """

    split: str
    row: int
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    missing: tuple[str, ...]


def checked_photographs() -> list[Checked]:
    """The photographs of `CHECKED`."""
    with CHECKED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lists = [[tuple(filter(None, row[kind].split("|"))) for kind in ("right", "wrong", "missing")] for row in rows]
    return [Checked(row["split"], int(row["row"]), *own) for row, own in zip(rows, lists, strict=True)]


def precision_and_recall(labels: Iterable[str] | None = None) -> tuple[float, float]:
    """Precision and recall of the rule on the checked photographs, over all labels or some."""
    some = set(label_list().vocabulary.names if labels is None else labels)
    right, wrong, missing = (
        sum(len(some.intersection(getattr(one, kind))) for one in checked_photographs())
        for kind in ("right", "wrong", "missing")
    )
    return right / (right + wrong), right / (right + missing)


if __name__ == "__main__":
    found = label_list()
    for title, names in (("all", None), ("seen", found.seen), ("unseen", found.unseen)):
        precision, recall = precision_and_recall(names)
        print(f"{title}: precision {precision:.3f}, recall {recall:.3f}")
