"""Mean average precision over labels."""

from __future__ import annotations

import math
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from ovml.metrics.functional.average_precision import (
    OfLabel,
    each_label_of_entries,
    each_label_of_pieces,
    label_average_precision,
)
from ovml.metrics.functional.inputs import check_inputs

CHUNK = 1 << 25
"""Bytes allocated at once, at most."""
MEMORY = 2 << 30
"""Bytes of scores and targets that a metric keeps in memory before it uses files."""
BYTES_PER_SCORE = 4 + 1
"""Of a score and its target in a dense batch."""
BYTES_PER_ENTRY = 4 + 4 + 1
"""Of a score, its label and its target, kept one by one."""


class MultilabelMeanAveragePrecision(Metric):
    """Mean over labels of the exact average precision over images; unknown targets are ignored.

    Equals torchmetrics' `MultilabelAveragePrecision(thresholds=None)` where every label has a positive. Of batches with
    mostly unknown targets only the known entries are kept: on Open Images one in five hundred.

    Args:
        empty_labels: Labels without positives: `skip` leaves them out, `zero` counts them as 0 (as the published MKT
            code and torchmetrics do).
        average: `macro` for the mean, `none` for the value of every label `[L]`.
        ignore_index: Target of unknown entries.
        dtype: Float type of the scores kept. `float16` halves the memory; scores that it rounds to the same number are
            ties. Default: float32, or the scores' own type where that is wider.
        memory: Bytes kept in CPU memory at most; further scores go to memory-mapped temporary files (in `TMPDIR`).
            Where the disk is full they stay in memory.
        kwargs: See `torchmetrics.Metric`.

    Example:
        >>> metric = MultilabelMeanAveragePrecision()
        >>> metric(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([[1, 0], [0, 0]]))
        tensor(1.)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    preds: list[Tensor] | Tensor
    targets: list[Tensor] | Tensor
    known_preds: list[Tensor] | Tensor
    known_labels: list[Tensor] | Tensor
    known_positive: list[Tensor] | Tensor
    num_labels: Tensor

    def __init__(
        self,
        empty_labels: Literal["skip", "zero"] = "skip",
        average: Literal["macro", "none"] = "macro",
        ignore_index: int = -1,
        dtype: torch.dtype | None = None,
        memory: int = MEMORY,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value, allowed in (
            ("empty_labels", empty_labels, ("skip", "zero")),
            ("average", average, ("macro", "none")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}; got {value!r}")
        self.empty_labels = empty_labels
        self.average = average
        self.ignore_index = ignore_index
        self.score_dtype = dtype
        self.memory = memory
        for name in ("preds", "targets", "known_preds", "known_labels", "known_positive"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("num_labels", default=torch.tensor(0), dist_reduce_fx="max")

    def update(self, preds: Tensor, targets: Tensor) -> None:
        """Add scores `[B, L]` and targets `[B, L]`; raises a `ValueError` for other shapes, and for NaN."""
        check_inputs(preds, targets)
        # One type on every process, because scores are gathered.
        preds = preds.detach().to(self.score_dtype or torch.promote_types(preds.dtype, torch.float32))
        # One byte each, whatever `ignore_index` is: 1 present, 0 absent, -1 unknown.
        targets = (targets == 1).to(torch.int8).masked_fill(targets == self.ignore_index, -1)
        known = targets != -1
        is_sparse = int(known.sum()) * BYTES_PER_ENTRY < known.numel() * BYTES_PER_SCORE
        rows, labels = known.nonzero(as_tuple=True) if is_sparse else (torch.empty(0, dtype=torch.long),) * 2
        # Both forms get a piece at every update, if empty, so that all processes have the same states to gather.
        self._append("preds", preds[:0] if is_sparse else preds)
        self._append("targets", targets[:0] if is_sparse else targets)
        self._append("known_preds", preds[rows, labels])
        self._append("known_labels", labels.int().to(preds.device))
        self._append("known_positive", targets[rows, labels] == 1)
        self.num_labels = self.num_labels.clamp(min=preds.shape[1])

    def _append(self, state: str, values: Tensor) -> None:
        """Copy rows into the free memory behind a state's last piece, or into a new piece.

        Keeping the caller's small tensors would fragment memory: the holes take as much again as the scores.
        """
        pieces: list[Tensor] = getattr(self, state)
        last = pieces[-1] if pieces else values[:0]
        size, row = len(last) + len(values), values[:1].nbytes
        is_alike = last.shape[1:] == values.shape[1:] and last.dtype == values.dtype and last.device == values.device
        # A tensor made in inference mode cannot be written to outside of it.
        is_open = torch.is_inference_mode_enabled() or not last.is_inference()
        if pieces and is_alike and is_open and size * row <= last.untyped_storage().nbytes():
            pieces[-1] = last.as_strided((size, *last.shape[1:]), last.stride())
            pieces[-1][len(last) :] = values
            return
        grown = min(sum(map(len, pieces)), CHUNK // max(row, 1))
        room = self._new_piece((max(len(values), grown), *values.shape[1:]), values)[: len(values)]
        pieces.append(room.copy_(values))

    def _new_piece(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialized tensor, in memory or in a file."""
        kept = sum(piece.untyped_storage().nbytes() for pieces in self._pieces_of_states() for piece in pieces)
        size = math.prod(shape)
        if like.device.type == "cpu" and size and kept + size * like.element_size() > self.memory:
            mapped = mapped_file(size, like.dtype)
            if mapped is not None:
                return mapped.view(shape)
        return like.new_empty(shape)

    def compute(self) -> Tensor:
        """Return the mean, or `[L]` with `average="none"` (NaN for skipped labels).

        Raises:
            ValueError: Nothing was added.
        """
        if not any(self._pieces_of_states()):
            raise ValueError("compute: no scores were added; call update first")
        per_label = self.per_label()
        if self.empty_labels == "zero":
            per_label = per_label.nan_to_num(0)
        return per_label.nanmean() if self.average == "macro" else per_label

    def per_label(self, of_label: OfLabel = label_average_precision) -> Tensor:
        """Average precision of every label `[L]` over this process's scores; NaN without positives.

        Args:
            of_label: Computes a label's number. Default: its average precision.
        """
        preds, targets, *known = self._pieces_of_states()
        if not any(map(len, known[0])):
            return each_label_of_pieces(of_label, preds, targets)
        entries = [torch.cat(pieces) for pieces in known]
        if any(map(len, preds)):  # some batches were mostly known, others mostly unknown
            for p, t in aligned(preds, targets):
                rows, labels = (t != -1).nonzero(as_tuple=True)
                found = (p[rows, labels], labels.int(), t[rows, labels] == 1)
                entries = [torch.cat(pair) for pair in zip(entries, found, strict=True)]
        scores, labels, positive = entries
        return each_label_of_entries(of_label, scores, labels, positive, int(self.num_labels))

    def pieces(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """This process's scores, targets (1, 0, -1) and labels, piece by piece.

        In dense pieces scores and targets are `[N, L]` and labels is `None`; in pieces with mostly unknown targets all
        three are `[K]`, one for each known entry.
        """
        preds, targets, *known = self._pieces_of_states()
        for scores, own_targets in aligned(preds, targets):
            yield scores, own_targets, None
        for scores, columns, positive in aligned(*known):
            yield scores, positive.to(torch.int8), columns.long()

    def _pieces_of_states(self) -> list[list[Tensor]]:
        states = (self.preds, self.targets, self.known_preds, self.known_labels, self.known_positive)
        # After a sync over processes a state is one tensor instead of a list of pieces.
        return [[state] if isinstance(state, Tensor) else state for state in states]


def aligned(*states: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Cut the pieces of several states at the same rows; types of different sizes make pieces of different lengths.

    >>> first, second = torch.arange(5), torch.arange(5) * 10
    >>> [tuple(map(len, pieces)) for pieces in aligned(first.split(3), second.split(2))]
    [(2, 2), (1, 1), (1, 1), (1, 1)]
    """
    rest = [deque(piece for piece in state if len(piece)) for state in states]
    while all(rest):
        size = min(len(pieces[0]) for pieces in rest)
        yield tuple(pieces[0][:size] for pieces in rest)
        for pieces in rest:
            if len(piece := pieces.popleft()) > size:
                pieces.appendleft(piece[size:])


def mapped_file(size: int, dtype: torch.dtype) -> Tensor | None:
    """A tensor in a temporary file that is deleted with it; `None` where the disk is full.

    >>> mapped_file(3, torch.float32).fill_(2).sum()
    tensor(6.)
    """
    descriptor, path = tempfile.mkstemp(prefix="ovml-scores-")
    try:
        # Allocate now: writing to a mapped file on a full disk would kill the process.
        os.posix_fallocate(descriptor, 0, size * dtype.itemsize)
        return torch.from_file(path, shared=True, size=size, dtype=dtype)
    except (OSError, AttributeError):
        return None
    finally:
        os.close(descriptor)
        os.unlink(path)  # the mapping stays until the tensor is freed
