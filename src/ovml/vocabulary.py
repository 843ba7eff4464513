"""Label names: seen labels, which have annotations in training, and unseen labels."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovml.utils.errors import UserError


def label_key(name: str) -> str:
    """Normalise a label name for comparison: case and repeated, leading or trailing spaces are ignored.

    >>> label_key("  Black   Cat ")
    'black cat'
    """
    return " ".join(name.casefold().split())


def check_names(names: Sequence[str], where: str = "labels") -> tuple[str, ...]:
    """Check label names and return them as a tuple, stripped.

    Args:
        names: Label names.
        where: Name of the list in errors.

    Raises:
        UserError: The list is empty, a name is empty or not a string, or two names are the same up to case and
            spaces.

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


def check_template(template: str) -> str:
    """Return a template that has exactly one `{}`.

    Raises:
        UserError: It has none or several.
    """
    if template.count("{}") != 1:
        raise UserError(f"template {template!r} must hold {{}} exactly once, where the label's name goes")
    return template


@dataclass(frozen=True)
class LabelVocabulary:
    """The labels of a data set, seen labels first.

    Column `i` of every target tensor `[B, L]` belongs to `names[i]`.

    Args:
        seen: Names with annotations in training.
        unseen: Names that are scored in evaluation only.
        texts: Text that the text tower reads for each name. Labels that differ by an id (`Bank (/m/01vjsp)`) may share
            a text (`Bank`). Default: the names.

    Raises:
        UserError: The list is empty, a name is empty or repeated, or the number of texts is not that of names.

    Example:
        >>> vocabulary = LabelVocabulary(seen=("cat", "dog"), unseen=("black cat",))
        >>> len(vocabulary), vocabulary.names[vocabulary.unseen_slice]
        (3, ('black cat',))
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = check_names([*self.seen, *self.unseen])
        object.__setattr__(self, "seen", names[: len(self.seen)])
        object.__setattr__(self, "unseen", names[len(self.seen) :])
        object.__setattr__(self, "texts", tuple(text.strip() for text in self.texts) or names)
        if len(self.texts) != len(names) or not all(self.texts):
            raise UserError(f"texts: one text is needed per label; got {len(self.texts)} for {len(names)} labels")

    @classmethod
    def from_ids(cls, seen: Sequence[str], unseen: Sequence[str], name_of: Mapping[str, str]) -> LabelVocabulary:
        """Make a vocabulary of labels that have ids and may share a name.

        A name that several labels share is followed by the id; the text tower reads the plain name.

        Args:
            seen: Ids of the seen labels.
            unseen: Ids of the unseen labels.
            name_of: Name by id.

        >>> LabelVocabulary.from_ids(["/m/1", "/m/2"], ["/m/3"], {"/m/1": "Bank", "/m/2": "Cat", "/m/3": "bank"}).names
        ('Bank (/m/1)', 'Cat', 'bank (/m/3)')
        """
        texts = [name_of[label] for label in (*seen, *unseen)]
        count = Counter(map(label_key, texts))
        ids = (*seen, *unseen)
        names = [
            f"{text} ({label})" if count[label_key(text)] > 1 else text for label, text in zip(ids, texts, strict=True)
        ]
        return cls(tuple(names[: len(seen)]), tuple(names[len(seen) :]), tuple(texts))

    @property
    def names(self) -> tuple[str, ...]:
        """All names, seen labels first."""
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

    def seen_only(self) -> LabelVocabulary:
        """Return a vocabulary of the seen labels alone."""
        return LabelVocabulary(self.seen, (), self.texts[self.seen_slice])

    def to_dict(self) -> dict[str, list[str]]:
        """Return plain lists, for checkpoints and JSON."""
        lists = {"seen": list(self.seen), "unseen": list(self.unseen)}
        return lists if self.texts == self.names else {**lists, "texts": list(self.texts)}

    @classmethod
    def from_any(cls, labels: LabelVocabulary | Mapping[str, Any] | Iterable[str]) -> LabelVocabulary:
        """Make a vocabulary from a vocabulary, the output of `to_dict`, or a list of (seen) names."""
        if isinstance(labels, LabelVocabulary):
            return labels
        if isinstance(labels, Mapping):
            return cls(*(tuple(labels.get(key) or ()) for key in ("seen", "unseen", "texts")))
        return cls(check_names(labels if isinstance(labels, str) else tuple(labels)))


def read_names(path: str | Path) -> tuple[str, ...]:
    """Read label names from a text file with one name per line; blank lines are skipped.

    Raises:
        UserError: The file is missing, is not UTF-8 text, contains no name, or repeats a name.
    """
    lines = _read_text(Path(path)).splitlines()
    return check_names([line.strip() for line in lines if line.strip()], where=str(path))


def read_vocabulary(path: str | Path) -> LabelVocabulary:
    """Read labels from a text file with one name per line, or from a CSV file with the columns `id,name`.

    Labels of a CSV file may share a name, as in Open Images; their ids distinguish them. A first line `id,name` or
    `LabelName,DisplayName` is a header. A CSV file with one column is a list of names.

    Raises:
        UserError: The file is missing, is not UTF-8 text, contains no label, repeats a label, or rows have different
            numbers of columns.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv":
        return LabelVocabulary(read_names(path))
    rows = csv.reader(io.StringIO(_read_text(path), newline=""))
    names: dict[str, str] = {}
    single: list[str] = []
    for row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells) or (not names and [cell.lower() for cell in cells] in CSV_HEADERS):
            continue
        where = f"{path}, line {rows.line_num}"
        if len(cells) > 2 or "" in cells or (names if len(cells) == 1 else single):
            raise UserError(f"{where}: expected an id and a name, or one name alone in every line; got {row!r}")
        if len(cells) == 1:
            single += cells
        elif cells[0] in names:
            raise UserError(f"{where}: the id {cells[0]!r} is repeated; keep one of its lines")
        else:
            names[cells[0]] = cells[1]
    return (
        LabelVocabulary.from_ids(list(names), (), names) if names else LabelVocabulary(check_names(single, str(path)))
    )


CSV_HEADERS = (["id", "name"], ["labelname", "displayname"])
"""Header lines of CSV label files, in lower case."""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the label file ({error.strerror}); give a text file with one name per line"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the label file as UTF-8 with one name per line") from error
