"""Verified annotations of Open Images as arrays of unique pairs of image and label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ovml.data.cache import ragged
from ovml.utils.errors import UserError

Array = np.ndarray[Any, Any]

LABEL_BITS = 20
"""Bits of a label number: up to a million labels, which leaves 42 bits for images."""
LABEL_MASK = (1 << LABEL_BITS) - 1
BOTH = -1
"""Value of a pair that is annotated both present and absent."""
PIECE = 1 << 22
"""Rows processed at once; temporary arrays of tens of millions of rows would take several times their memory."""


class AnnotationCollector:
    """Collects rows of annotations, block by block.

    Args:
        label_ids: Machine ids that are numbered first; ids in later rows follow.
    """

    def __init__(self, label_ids: Sequence[str] = ()) -> None:
        self.numbers = {label: number for number, label in enumerate(label_ids)}
        self._keys: list[Array] = []

    def add(self, images: Array, labels: pa.DictionaryArray, present: Array) -> None:
        """Add rows.

        Args:
            images: Image number of each row `[N]`.
            labels: Machine id of each row `[N]`.
            present: 1 if the label is present, 0 if it is absent `[N]`.
        """
        numbers = [self.numbers.setdefault(label, len(self.numbers)) for label in labels.dictionary.to_pylist()]
        if len(self.numbers) > LABEL_MASK:
            raise UserError(f"more than {LABEL_MASK:,} different labels; they should be machine ids such as /m/01g317")
        label_numbers = np.array(numbers, dtype=np.int64)[labels.indices.to_numpy()]
        # Sorting these numbers sorts by image, then label, then annotation.
        self._keys.append((images.astype(np.int64) << LABEL_BITS | label_numbers) << 1 | present)

    def annotations(self, num_images: int, number_of: Array | None = None) -> Annotations:
        """Return the collected rows as pairs and empty the collector.

        Args:
            num_images: Number of images.
            number_of: New number of every image number.
        """
        if number_of is not None:
            for keys in self._keys:
                old = keys >> LABEL_BITS + 1
                keys += (number_of[old] - old) << LABEL_BITS + 1
        joined = np.concatenate([np.zeros(0, dtype=np.int64), *self._keys])
        self._keys.clear()
        return Annotations.from_keys(joined, tuple(self.numbers), num_images)


@dataclass(frozen=True)
class Annotations:
    """Unique annotated pairs `[M]`, sorted by image, then label.

    Attributes:
        pairs: Number of the image `<< LABEL_BITS |` number of the label, its index in `label_ids`.
        values: 1 present, 0 absent, -1 annotated both ways.
        label_ids: Machine ids.
        num_rows: Rows per label `[len(label_ids)]`, repeats included.
        num_images: Number of images.
    """

    pairs: Array
    values: Array
    label_ids: tuple[str, ...]
    num_rows: Array
    num_images: int

    @classmethod
    def from_keys(cls, keys: Array, label_ids: Sequence[str], num_images: int) -> Annotations:
        """Sort rows into pairs.

        Args:
            keys: (image << LABEL_BITS | label) << 1 | present, of every row `[N]`; overwritten with the pairs.
            label_ids: Machine ids by label number.
            num_images: Number of images.
        """
        keys.sort()
        num_rows = np.zeros(len(label_ids), dtype=np.int64)
        present = np.empty(len(keys), dtype=np.int8)
        first = np.ones(len(keys), dtype=bool)  # row of its pair; rows that say absent sort first
        for piece in _pieces(len(keys)):
            num_rows += np.bincount(keys[piece] >> 1 & LABEL_MASK, minlength=len(label_ids))
            present[piece] = keys[piece] & 1
            before = keys[max(piece.start - 1, 0) : piece.stop - 1]
            first[max(piece.start, 1) : piece.stop] = keys[max(piece.start, 1) : piece.stop] ^ before > 1
        last = np.append(first[1:], True)[: len(first)]
        values = np.where(present[first] == present[last], present[first], np.int8(BOTH))
        stop = 0
        for piece in _pieces(len(keys)):
            some = keys[piece][first[piece]] >> 1
            keys[stop : stop + len(some)] = some
            stop += len(some)
        return cls(keys[:stop], values, tuple(label_ids), num_rows, num_images)

    def positives(self) -> dict[str, int]:
        """Number of images in which each label is present, for every label of the annotations."""
        counts = np.zeros(len(self.label_ids), dtype=np.int64)
        for piece in _pieces(len(self.pairs)):
            labels = self.pairs[piece] & LABEL_MASK
            counts += np.bincount(labels[self.values[piece] == 1], minlength=len(counts))
        return dict(zip(self.label_ids, counts.tolist(), strict=True))

    def lists(self, num_labels: int, counts: dict[str, int]) -> tuple[pa.ListArray, pa.ListArray]:
        """Present and absent labels of every image; a pair that is annotated both ways is in neither.

        Args:
            num_labels: Size of the vocabulary, which is the start of `label_ids`; other labels are skipped.
            counts: Filled with counts.
        """
        inside = np.empty(len(self.pairs), dtype=bool)
        for piece in _pieces(len(self.pairs)):
            inside[piece] = self.pairs[piece] & LABEL_MASK < num_labels
        conflicting = int((inside & (self.values == BOTH)).sum())
        positive, negative = (self._lists(inside & (self.values == value)) for value in (1, 0))
        counts |= {
            "images": self.num_images,
            "rows": int(self.num_rows.sum()),
            "rows outside the vocabulary": int(self.num_rows[num_labels:].sum()),
            "rows that repeat an annotation": int(self.num_rows[:num_labels].sum()) - int(inside.sum()) - conflicting,
            "pairs annotated both ways (unknown)": conflicting,
            "present annotations": len(positive.values),
            "absent annotations": len(negative.values),
        }
        return positive, negative

    def _lists(self, kept: Array) -> pa.ListArray:
        pairs = self.pairs[kept]
        labels = (pairs & LABEL_MASK).astype(np.int32)
        pairs >>= LABEL_BITS
        return ragged(pairs, labels, self.num_images)


def _pieces(length: int) -> Iterator[slice]:
    for start in range(0, length, PIECE):
        yield slice(start, min(start + PIECE, length))
