"""Evaluation protocols: which of a vocabulary's labels are scored together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary, label_key, read_names


class Protocol(ABC):
    """Some labels of a vocabulary, scored among themselves and measured apart.

    Subclass it and list it: `--model.protocols+ my_pkg.MyProtocol`.

    Attributes:
        name: What its metrics are called: `name/mAP`.

    Example:
        >>> class LastLabels(Protocol):
        ...     name = "last"
        ...     def columns(self, vocabulary):
        ...         return range(len(vocabulary) - 10, len(vocabulary))
    """

    name: str

    @abstractmethod
    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """Positions of its labels in the vocabulary; none where the vocabulary has none of the kind."""


class Seen(Protocol):
    """Seen labels alone: ordinary multi-label classification.

    Example:
        >>> list(Seen().columns(LabelVocabulary(("cat", "dog"), ("horse",))))
        [0, 1]
    """

    name = "seen"

    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """The first of the vocabulary."""
        return range(len(vocabulary.seen))


class ZeroShot(Protocol):
    """Unseen labels alone (ZSL).

    Example:
        >>> list(ZeroShot().columns(LabelVocabulary(("cat", "dog"), ("horse",))))
        [2]
    """

    name = "zsl"

    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """The last of the vocabulary."""
        return range(len(vocabulary.seen), len(vocabulary))


class GeneralizedZeroShot(Protocol):
    """Seen and unseen labels together (GZSL); nothing where no label is unseen.

    Example:
        >>> list(GeneralizedZeroShot().columns(LabelVocabulary(("cat", "dog"), ("horse",))))
        [0, 1, 2]
    """

    name = "gzsl"

    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """All of the vocabulary."""
        return range(len(vocabulary)) if vocabulary.unseen else ()


class TextLabels(Protocol):
    """Unseen labels of several words, "black cat", scored alone (He et al., AAAI 2023, call them text labels).

    A table of word vectors has none for them; a text tower reads them.

    Args:
        known_words: Take only phrases of which each word stands in some seen label: never seen as a phrase, but made of
            what was seen. Without, every unseen phrase.

    Example:
        >>> vocabulary = LabelVocabulary(("cat", "black dog"), ("black cat", "horse", "white horse"))
        >>> [vocabulary.names[i] for i in TextLabels().columns(vocabulary)]
        ['black cat']
        >>> [vocabulary.names[i] for i in TextLabels(known_words=False).columns(vocabulary)]
        ['black cat', 'white horse']
    """

    name = "text"

    def __init__(self, known_words: bool = True) -> None:
        self.known_words = known_words

    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """Those among the unseen labels."""
        seen = _words_of_seen(vocabulary)
        phrases = [(i, _words(vocabulary.texts[i])) for i in ZeroShot().columns(vocabulary)]
        return [i for i, words in phrases if len(words) > 1 and (not self.known_words or seen.issuperset(words))]


class NewWords(Protocol):
    """Unseen labels with a word that no seen label has, scored alone: what `TextLabels` leaves out of the phrases.

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


class NamedLabels(Protocol):
    """Labels that a text file names, one a line, scored alone.

    Args:
        path: The file.
        name: What the metrics are called.

    Raises:
        UserError: The file cannot be read; or, when it is first used, the vocabulary lacks one of its labels.

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


def default_protocols() -> list[Protocol]:
    """Seen, ZSL and GZSL.

    >>> [protocol.name for protocol in default_protocols()]
    ['seen', 'zsl', 'gzsl']
    """
    return [Seen(), ZeroShot(), GeneralizedZeroShot()]


def chosen_protocols(more: Sequence[Protocol] | None) -> list[Protocol]:
    """The default protocols and others beside them.

    Raises:
        UserError: Two have the same name, or a name is empty or has a slash.
    """
    protocols = [*default_protocols(), *(more or ())]
    names = [protocol.name for protocol in protocols]
    for name in names:
        if names.count(name) > 1 or not name or "/" in name or "." in name:
            raise UserError(f"model.protocols: names must differ and be plain words; got {name!r} among {names}")
    return protocols


def _words(text: str) -> list[str]:
    return label_key(text).split()


def _words_of_seen(vocabulary: LabelVocabulary) -> set[str]:
    return {word for text in vocabulary.texts[vocabulary.seen_slice] for word in _words(text)}
