"""Evaluation protocols: which labels of a vocabulary are scored together, and under which title."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from ovml.utils.errors import UserError
from ovml.utils.parts import Part
from ovml.vocabulary import LabelVocabulary, label_key, read_names

CALIBRATION = "calibration"
"""Prefix of the metrics of probabilities; no protocol may have this name."""


class EvaluationProtocol(Part, ABC):
    """Some labels of a vocabulary, scored among themselves.

    Metrics, tables, figures and the k of precision at k follow from `name`, `title` and `columns`. Subclass it and list
    it: `--model.protocols+ my_pkg.MyProtocol`.

    Attributes:
        name: Prefix of the metrics: `name/mAP`.
        title: What tables and figures show. Default: the name, with blanks for underscores.

    Example:
        >>> class LastLabels(EvaluationProtocol):
        ...     name = "last_labels"
        ...     def columns(self, vocabulary):
        ...         return range(max(0, len(vocabulary) - 10), len(vocabulary))
        >>> LastLabels().title
        'last labels'
    """

    name: str

    @cached_property
    def title(self) -> str:
        """What tables and figures show."""
        return self.name.replace("_", " ")

    @abstractmethod
    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """Columns of its labels in the vocabulary; empty where the vocabulary has no such label."""


class Seen(EvaluationProtocol):
    """Seen labels alone: ordinary multi-label classification.

    Example:
        >>> list(Seen().columns(LabelVocabulary(("cat", "dog"), ("horse",))))
        [0, 1]
    """

    name = "seen"

    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """The first of the vocabulary."""
        return range(len(vocabulary.seen))


class ZeroShot(EvaluationProtocol):
    """Unseen labels alone (ZSL).

    Example:
        >>> list(ZeroShot().columns(LabelVocabulary(("cat", "dog"), ("horse",))))
        [2]
    """

    name = "zsl"
    title = "ZSL"

    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """The last of the vocabulary."""
        return range(len(vocabulary.seen), len(vocabulary))


class GeneralizedZeroShot(EvaluationProtocol):
    """Seen and unseen labels together (GZSL); empty where no label is unseen.

    Example:
        >>> list(GeneralizedZeroShot().columns(LabelVocabulary(("cat", "dog"), ("horse",))))
        [0, 1, 2]
    """

    name = "gzsl"
    title = "GZSL"

    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """All of the vocabulary."""
        return range(len(vocabulary)) if vocabulary.unseen else ()


class TextLabels(EvaluationProtocol):
    """Labels of several words such as "black cat" (the text labels of He et al., AAAI 2023).

    A text tower reads them; tables of word vectors have no entry for them. The 3,756 text labels of the literature on
    Open Images are those among all 7,586 labels: `known_words: false` and `seen: true`.

    Args:
        known_words: Only phrases whose words all occur in seen labels. If false, every phrase.
        seen: Seen labels too. By default unseen ones only.

    Example:
        >>> vocabulary = LabelVocabulary(("cat", "black dog"), ("black cat", "horse", "white horse"))
        >>> [vocabulary.names[i] for i in TextLabels().columns(vocabulary)]
        ['black cat']
        >>> [vocabulary.names[i] for i in TextLabels(known_words=False).columns(vocabulary)]
        ['black cat', 'white horse']
        >>> [vocabulary.names[i] for i in TextLabels(known_words=False, seen=True).columns(vocabulary)]
        ['black dog', 'black cat', 'white horse']
    """

    name = "text"

    def __init__(self, known_words: bool = True, seen: bool = False) -> None:
        self.known_words = known_words
        self.seen = seen

    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """Those among the unseen labels, or among all."""
        known = _words_of_seen(vocabulary)
        first = 0 if self.seen else len(vocabulary.seen)
        phrases = [(i, _words(vocabulary.texts[i])) for i in range(first, len(vocabulary))]
        return [i for i, words in phrases if len(words) > 1 and (not self.known_words or known.issuperset(words))]


class NewWords(EvaluationProtocol):
    """Unseen labels with a word that occurs in no seen label.

    Example:
        >>> vocabulary = LabelVocabulary(("cat", "black dog"), ("black cat", "horse", "white horse"))
        >>> [vocabulary.names[i] for i in NewWords().columns(vocabulary)]
        ['horse', 'white horse']
    """

    name = "new_words"

    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """Those among the unseen labels."""
        seen = _words_of_seen(vocabulary)
        return [i for i in ZeroShot().columns(vocabulary) if not seen.issuperset(_words(vocabulary.texts[i]))]


class NamedLabels(EvaluationProtocol):
    """Labels that a text file lists, one per line.

    Args:
        path: The file.
        name: Name of the protocol.

    Raises:
        UserError: The file cannot be read; or, in `columns`, the vocabulary lacks one of its labels.

    Example:
        >>> file = getfixture("tmp_path") / "animals.txt"
        >>> _ = file.write_text("horse")
        >>> NamedLabels(str(file), "animals").columns(LabelVocabulary(("cat", "dog"), ("horse",)))
        [2]
    """

    def __init__(self, path: str, name: str) -> None:
        self.path = path
        self.name = name
        self._names = read_names(Path(path))

    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """The file's labels, in its order."""
        place = {label_key(name): i for i, name in enumerate(vocabulary.names)}
        for name in self._names:
            if label_key(name) not in place:
                raise UserError(f"{self.path}: {name!r} is no label of the data set; remove it from the file")
        return [place[label_key(name)] for name in self._names]


def default_protocols() -> list[EvaluationProtocol]:
    """ZSL, GZSL and seen labels, in the order of tables.

    >>> [protocol.name for protocol in default_protocols()]
    ['zsl', 'gzsl', 'seen']
    """
    return [ZeroShot(), GeneralizedZeroShot(), Seen()]


def chosen_protocols(more: Sequence[EvaluationProtocol] | None) -> list[EvaluationProtocol]:
    """The default protocols, then `more`.

    Raises:
        UserError: Two have the same name, or a name is empty, `calibration`, or has a slash or a dot.
    """
    protocols = [*default_protocols(), *(more or ())]
    names = [protocol.name for protocol in protocols]
    for name in names:
        if names.count(name) > 1 or name in ("", CALIBRATION) or "/" in name or "." in name:
            raise UserError(f"protocols: names must differ and be plain words; got {name!r} among {names}")
    return protocols


def shown_protocols(names: Iterable[str]) -> list[str]:
    """The protocols that tables and figures show: `seen` only where there is no `gzsl`, which has its labels too.

    >>> shown_protocols(["zsl", "gzsl", "seen", "text"]), shown_protocols(["seen", "text"])
    (['zsl', 'gzsl', 'text'], ['seen', 'text'])
    """
    names = list(names)
    return [name for name in names if name != Seen.name or GeneralizedZeroShot.name not in names]


def label_columns(protocol: EvaluationProtocol, vocabulary: LabelVocabulary) -> range | list[int]:
    """A protocol's columns, checked; a range where they are neighbours, which select without a copy.

    Raises:
        UserError: A column is repeated or is none of the vocabulary.

    >>> label_columns(ZeroShot(), LabelVocabulary(("cat",), ("dog", "horse")))
    range(1, 3)
    """
    columns = list(protocol.columns(vocabulary))
    if len(set(columns)) < len(columns) or not set(columns) <= set(range(len(vocabulary))):
        raise UserError(
            f"protocol {protocol.name!r}: columns must differ and be from 0 to {len(vocabulary) - 1}; got {columns}"
        )
    neighbours = range(columns[0], columns[0] + len(columns)) if columns else range(0)
    return neighbours if columns == list(neighbours) else columns


def _words(text: str) -> list[str]:
    return label_key(text).split()


def _words_of_seen(vocabulary: LabelVocabulary) -> set[str]:
    return {word for text in vocabulary.texts[vocabulary.seen_slice] for word in _words(text)}
