"""Label names: seen labels, which have annotations in training, and unseen labels."""

from __future__ import annotations

import csv
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from ovml.utils.errors import UserError, beginning
from ovml.utils.lists import NameList, read_list
from ovml.utils.resources import vocabulary_path
from ovml.utils.schema import check_type, short


def label_key(name: str) -> str:
    """Normalise a label name for comparison: case and repeated, leading or trailing spaces are ignored.

    >>> label_key("  Black   Cat ")
    'black cat'
    """
    if not name.isascii():  # other forms of a character, and characters that nobody sees, make no other label
        name = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
    return " ".join(name.casefold().split())


def check_names(names: Sequence[str], where: str = "labels") -> tuple[str, ...]:
    """Check label names and return them as a tuple, stripped.

    Args:
        names: Label names.
        where: Name of the list in errors.

    Raises:
        UserError: The list is empty, a name is empty or no string, or two names are the same up to case and spaces.

    >>> check_names(["cat", " black cat"])
    ('cat', 'black cat')
    """
    if isinstance(names, str):
        raise UserError(f"{where}: expected a list of names, got the single string {names!r}; write [{names!r}]")
    if len(names) == 0:
        raise UserError(f"{where}: the list is empty; give at least one label name")
    first: dict[str, int] = {}
    for position, name in enumerate(names, start=1):
        if not isinstance(name, str):
            raise UserError(f"{where}: name {position} is {name!r}; label names are strings")
        if any("\ud800" <= character <= "\udfff" for character in name):  # bytes that are not UTF-8
            raise UserError(f"{where}: name {position} is not Unicode text; write it in UTF-8")
        key = label_key(name)
        if not key:
            raise UserError(f"{where}: name {position} is empty; remove it or give it a name")
        if key in first:
            other = names[first[key] - 1]
            same = "is repeated" if other == name else f"and {beginning(other)!r} differ only in case or blanks"
            shown = f"{beginning(name)!r} (name {position})"
            raise UserError(f"{where}: {shown} {same} (name {first[key]}); keep one of them")
        first[key] = position
    return tuple(name.strip() for name in names)


def group_columns(groups: Sequence[Sequence[str]], names: Sequence[str], where: str = "exclusive") -> list[list[int]]:
    """Columns of groups of labels, compared as `label_key` does.

    Args:
        groups: Names of at least two labels each.
        names: All labels.
        where: Name of the groups in errors.

    Raises:
        UserError: A group has fewer labels, repeats one, or has a name that is not one of the labels.

    >>> group_columns([["Indoor", "outdoor"]], ["cat", "indoor", "outdoor"])
    [[1, 2]]
    """
    column = {label_key(name): position for position, name in enumerate(names)}
    columns = []
    for group in groups:
        if isinstance(group, str):
            raise UserError(f"{where}: expected lists of labels, got the single string {group!r}; write [[...], [...]]")
        if missing := next((name for name in check_names(group, where) if label_key(name) not in column), None):
            raise UserError(f"{where}: {beginning(missing)!r} is not one of the labels; check the spelling, or add it")
        if len(group) < 2:
            raise UserError(f"{where}: a group has at least two labels, of which one may win; got {list(group)}")
        columns.append([column[label_key(name)] for name in group])
    return columns


def labels_below(name: str, parents: Mapping[str, str]) -> list[str]:
    """Labels that have the label `name` above them, however far, by the parents of `packaged_parents`.

    >>> labels_below("animal", {"dog": "mammal", "mammal": "animal", "car": "vehicle"})
    ['dog', 'mammal']
    """
    above, below = {label_key(name)}, {""}
    while below:
        below = {label_key(label) for label, parent in parents.items() if label_key(parent) in above} - above
        above |= below
    return [label for label in parents if label_key(label) in above - {label_key(name)}]


def check_template(template: str) -> str:
    """Return a template that has exactly one `{}`.

    Raises:
        UserError: It has none or several.
    """
    if template.count("{}") != 1:
        raise UserError(f"template {template!r} must hold {{}} exactly once, where the label's name goes")
    return template


class VocabularyLists(TypedDict, total=False):
    """A vocabulary as plain data; see `LabelVocabulary.to_dict`.

    >>> LabelVocabulary.from_any(VocabularyLists(seen=["sea"], unseen=["palm"])).names
    ('sea', 'palm')
    """

    seen: list[str] | None
    unseen: list[str] | None
    texts: list[str] | None


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
        count = Counter(label_key(name_of[label]) for label in (*seen, *unseen))
        names, unseen_names = (
            tuple(f"{name_of[i]} ({i})" if count[label_key(name_of[i])] > 1 else name_of[i] for i in ids)
            for ids in (seen, unseen)
        )
        return cls(names, unseen_names, tuple(name_of[label] for label in (*seen, *unseen)))

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

    def extended(self, names: Sequence[str], where: str) -> LabelVocabulary:
        """Return a vocabulary of these labels and more.

        Args:
            names: More names.
            where: What to call them in an error.

        Raises:
            UserError: They are not a proper list, or one of them is in the vocabulary.
        """
        own = set(map(label_key, self.names))
        if twice := next((name for name in check_names(names, where) if label_key(name) in own), None):
            raise UserError(f"{where}: {beginning(twice)!r} is one of the labels; leave it out here or there")
        return LabelVocabulary((*self.names, *names), texts=(*self.texts, *names))

    def followed_by(self, others: LabelVocabulary) -> LabelVocabulary:
        """The vocabulary, then the labels of another one that it lacks.

        >>> LabelVocabulary(("cat",)).followed_by(LabelVocabulary(("dog", "Cat"))).names
        ('cat', 'dog')
        """
        own = set(map(label_key, self.names))
        pairs = zip(others.names, others.texts, strict=True)
        if not (missing := [pair for pair in pairs if label_key(pair[0]) not in own]):
            return self
        names, texts = zip(*missing, strict=True)
        return LabelVocabulary((*self.names, *names), texts=(*self.texts, *texts))

    def seen_only(self) -> LabelVocabulary:
        """Return a vocabulary of the seen labels alone."""
        return LabelVocabulary(self.seen, (), self.texts[self.seen_slice])

    def to_dict(self) -> dict[str, list[str]]:
        """Return plain lists, for checkpoints and JSON."""
        lists = {"seen": list(self.seen), "unseen": list(self.unseen)}
        return lists if self.texts == self.names else {**lists, "texts": list(self.texts)}

    @classmethod
    def from_any(cls, labels: LabelVocabulary | Mapping[str, Any] | Iterable[str]) -> LabelVocabulary:
        """Make a vocabulary from a vocabulary, the output of `to_dict`, or a list of (seen) names.

        Raises:
            UserError: They are something else, or not a proper list.
        """
        if isinstance(labels, LabelVocabulary):
            return labels
        if isinstance(labels, Mapping):
            check_type(labels, VocabularyLists, "labels")
            return cls(*(tuple(labels.get(key) or ()) for key in ("seen", "unseen", "texts")))
        if not isinstance(labels, Iterable):
            raise UserError(f"labels: expected a list of names; got {short(labels)}")
        return cls(check_names(labels if isinstance(labels, str) else tuple(labels)))


def read_names(path: str | Path) -> tuple[str, ...]:
    """Read label names from a file; see `ovml.utils.lists.read_list` for its forms.

    Raises:
        UserError: The file cannot be read, contains no name, or repeats a name.
    """
    return check_names(read_list(path).names, where=str(path))


def read_vocabulary(path: str | Path) -> LabelVocabulary:
    """Read labels from a file; see `ovml.utils.lists.read_list` for its forms.

    Labels with ids may share a name, as in Open Images; their ids distinguish them.

    Raises:
        UserError: The file cannot be read, contains no label, or repeats a label.
    """
    return vocabulary_of(read_list(path), str(path))


def packaged_vocabulary(name: str = "everyday") -> LabelVocabulary:
    """Read a vocabulary that ovml ships.

    Args:
        name: A key of `ovml.utils.resources.VOCABULARIES`.

    Raises:
        UserError: There is none of this name.

    >>> packaged_vocabulary("voc").names[:3]
    ('aeroplane', 'bicycle', 'bird')
    """
    return read_vocabulary(vocabulary_path(name))


def packaged_parents(name: str = "everyday") -> dict[str, str]:
    """The parent of each label of a packaged vocabulary that has one; see `packaged_vocabulary`.

    >>> parents = packaged_parents("everyday")
    >>> parents["puppy"], parents["dog"], parents["mammal"], "animal" in parents
    ('dog', 'mammal', 'animal', False)
    """
    with vocabulary_path(name).open(encoding="utf-8", newline="") as file:
        return {row["name"]: row["parent"] for row in csv.DictReader(file) if row.get("parent")}


def vocabulary_of(found: NameList, where: str) -> LabelVocabulary:
    """The vocabulary of a list.

    Raises:
        UserError: The list is empty, or repeats a label.
    """
    if found.ids is None or not found.names:
        return LabelVocabulary(check_names(found.names, where))
    return LabelVocabulary.from_ids(found.ids, (), dict(zip(found.ids, found.names, strict=True)))
