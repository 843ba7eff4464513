"""Label names: which were seen in training, which are unseen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovml.errors import UserError


def label_key(name: str) -> str:
    """What makes two names the same label for the text tower: case and blanks do not count.

    >>> label_key("  Black   Cat ")
    'black cat'
    """
    return " ".join(name.casefold().split())


def check_names(names: Sequence[str], where: str = "labels") -> tuple[str, ...]:
    """Return the names as a tuple, stripped, or say which one cannot be a label.

    Args:
        names: Label names.
        where: What to call the list in an error.

    Raises:
        UserError: The list is empty, a name is empty or not a string, or two names are the same label
            (also when they differ only in case or blanks).

    >>> check_names(["cat", " black cat"])
    ('cat', 'black cat')
    """
    if isinstance(names, str):
        raise UserError(f"{where}: expected a list of names, got the single string {names!r}; write [{names!r}]")
    if len(names) == 0:
        raise UserError(f"{where}: the list is empty; give at least one label name")
    first: dict[str, int] = {}
    for position, name in enumerate(names):
        if not isinstance(name, str):
            raise UserError(f"{where}: name {position} is {name!r}; label names are strings")
        key = label_key(name)
        if not key:
            raise UserError(f"{where}: name {position} is empty; remove it or give it a name")
        if key in first:
            other = names[first[key]]
            same = "is repeated" if other == name else f"and {other!r} differ only in case or blanks"
            raise UserError(f"{where}: {name!r} (name {position}) {same} (name {first[key]}); keep one of them")
        first[key] = position
    return tuple(name.strip() for name in names)


@dataclass(frozen=True)
class LabelVocabulary:
    """The labels of a data set: the seen ones first, then the unseen ones.

    Column `i` of every target tensor `[B, L]` belongs to `names[i]`.

    Args:
        seen: Names with annotations in training.
        unseen: Names that are scored only in evaluation.

    Raises:
        UserError: An empty list, an empty name, or a repeated name.

    Example:
        >>> vocabulary = LabelVocabulary(seen=("cat", "dog"), unseen=("black cat",))
        >>> len(vocabulary), vocabulary.names[vocabulary.unseen_slice]
        (3, ('black cat',))
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = check_names([*self.seen, *self.unseen])
        object.__setattr__(self, "seen", names[: len(self.seen)])
        object.__setattr__(self, "unseen", names[len(self.seen) :])

    @property
    def names(self) -> tuple[str, ...]:
        """All names, seen ones first."""
        return self.seen + self.unseen

    @property
    def seen_slice(self) -> slice:
        """Columns of the seen labels."""
        return slice(0, len(self.seen))

    @property
    def unseen_slice(self) -> slice:
        """Columns of the unseen labels."""
        return slice(len(self.seen), len(self))

    def __len__(self) -> int:
        return len(self.seen) + len(self.unseen)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def to_dict(self) -> dict[str, list[str]]:
        """Plain lists, for checkpoints and JSON."""
        return {"seen": list(self.seen), "unseen": list(self.unseen)}

    @classmethod
    def from_any(cls, labels: LabelVocabulary | Mapping[str, Any] | Iterable[str]) -> LabelVocabulary:
        """Accept a vocabulary, what `to_dict` gave, or a plain list of (seen) names."""
        if isinstance(labels, LabelVocabulary):
            return labels
        if isinstance(labels, Mapping):
            return cls(tuple(labels["seen"]), tuple(labels.get("unseen", ())))
        return cls(check_names(labels if isinstance(labels, str) else tuple(labels)))


def read_names(path: str | Path) -> tuple[str, ...]:
    """Read label names from a text file, one a line; blank lines are left out.

    Raises:
        UserError: The file is missing, is not UTF-8 text, holds no name, or repeats one.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the label file ({error.strerror}); give a text file, one name a line"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the label file as UTF-8, one name a line") from error
    return check_names([line.strip() for line in lines if line.strip()], where=str(path))
