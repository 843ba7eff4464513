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

from ovml.metrics.functional.average_precision import label_average_precision, number_known
from ovml.metrics.functional.each_label import KeptScores, OfLabel, each_label
from ovml.metrics.functional.inputs import check_inputs, known_targets
from ovml.metrics.processes import Processes
from ovml.metrics.score_counts import ScoreCounts

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

    With several processes each keeps its own scores; they are never gathered. `compute` gives every process a share of
    the labels, and exchanges their columns block by block.

    Args:
        empty_labels: Labels without positives: `skip` leaves them out, `zero` counts them as 0 (as the published MKT
            code and torchmetrics do), `zero_if_marked` those alone that are known in an image (as BiAM's code does on
            Open Images).
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
    preds: list[Tensor]
    targets: list[Tensor]
    known_preds: list[Tensor]
    known_labels: list[Tensor]
    known_positive: list[Tensor]
    num_labels: Tensor

    def __init__(
        self,
        empty_labels: Literal["skip", "zero", "zero_if_marked"] = "skip",
        average: Literal["macro", "none"] = "macro",
        ignore_index: int = -1,
        dtype: torch.dtype | None = None,
        memory: int = MEMORY,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value, allowed in (
            ("empty_labels", empty_labels, ("skip", "zero", "zero_if_marked")),
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
        self._found: dict[OfLabel, Tensor] = {}

    def update(self, preds: Tensor, targets: Tensor) -> None:
        """Add scores `[B, L]` and targets `[B, L]`; raises a `ValueError` for other shapes, and for NaN."""
        check_inputs(preds, targets)
        self._found.clear()
        preds = preds.detach().to(self.score_dtype or torch.promote_types(preds.dtype, torch.float32))
        targets = known_targets(targets, self.ignore_index)
        known = targets != -1
        is_sparse = int(known.sum()) * BYTES_PER_ENTRY < known.numel() * BYTES_PER_SCORE
        rows, labels = known.nonzero(as_tuple=True) if is_sparse else (torch.empty(0, dtype=torch.long),) * 2
        # Both forms get a piece at every update, if an empty one.
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
        states = (self.preds, self.targets, self.known_preds, self.known_labels, self.known_positive)
        kept = sum(piece.untyped_storage().nbytes() for pieces in states for piece in pieces)
        size = math.prod(shape)
        if like.device.type == "cpu" and size and kept + size * like.element_size() > self.memory:
            mapped = mapped_file(size, like.dtype)
            if mapped is not None:
                return mapped.view(shape)
        return like.new_empty(shape)

    def reset(self) -> None:
        """Forget all scores."""
        super().reset()
        self._found.clear()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Add a batch and return its own value."""
        value: Tensor = super().forward(*args, **kwargs)
        self._found.clear()
        return value

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: processes exchange what `each_label` and `score_counts` need, not all scores."""

    def compute(self) -> Tensor:
        """Return the mean, or `[L]` with `average="none"` (NaN for skipped labels).

        Raises:
            ValueError: Nothing was added.
        """
        if not self.preds and self.processes().size == 1:
            raise ValueError("compute: no scores were added; call update first")
        per_label = self.per_label()
        if self.empty_labels == "zero":
            per_label = per_label.nan_to_num(0)
        elif self.empty_labels == "zero_if_marked":
            marked = self.each_label([number_known])[0] > 0
            per_label = torch.where(marked, per_label.nan_to_num(0), per_label)
        return per_label.nanmean() if self.average == "macro" else per_label

    def per_label(self) -> Tensor:
        """Average precision of every label over all processes `[L]`; NaN without positives."""
        return self.each_label([label_average_precision])[0]

    def each_label(self, functions: Sequence[OfLabel]) -> Tensor:
        """Numbers `[F, L]` of every label over all processes, which must all call it.

        Numbers are remembered until scores are added, and scores are exchanged once for all `functions`.

        Args:
            functions: Each computes one number from a label's known scores `[N]` and whether each is present `[N]`.
        """
        if missing := [function for function in functions if function not in self._found]:
            kept = KeptScores(self.preds, self.targets, self.known_preds, self.known_labels, self.known_positive)
            found = each_label(missing, kept, int(self.num_labels), self.processes()).to(self.device)
            self._found |= dict(zip(missing, found, strict=True))
        return torch.stack([self._found[function] for function in functions])

    def score_counts(self, bins: int, label_groups: Tensor | None = None, groups: int = 1) -> ScoreCounts:
        """Histogram of the scores over all processes, which must all call it.

        Args:
            bins: Number of bins.
            label_groups: The group of each label `[L]`, counted separately. Default: 0.
            groups: Number of groups.
        """
        processes, counts = self.processes(), ScoreCounts(bins, groups)
        extremes = torch.tensor([torch.inf, torch.inf], dtype=torch.float64)  # the lowest, and the highest negated
        for scores, targets, _ in self.pieces():
            left_out = (targets < 0) | ~scores.isfinite()
            own = [(sign * scores).masked_fill(left_out, torch.inf).min() for sign in (1, -1)]
            extremes = torch.minimum(extremes, torch.stack(own).double().cpu())
        # The bins cover the range of all scores from the start, so they do not depend on how scores are distributed.
        lowest, highest = processes.gather(extremes).amin(dim=0).tolist()
        if math.isfinite(lowest):
            counts.reach(lowest, -highest)
        counts.update_pieces(self.pieces(), label_groups)
        counts.counts = processes.total(torch.from_numpy(counts.counts)).numpy()
        return counts

    def processes(self) -> Processes:
        """The processes over which scores are spread."""
        together = bool(self._to_sync and self.distributed_available_fn and self.distributed_available_fn())
        return Processes(self.device, together, self.process_group)

    def pieces(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """This process's scores, targets (1, 0, -1) and labels, piece by piece.

        In dense pieces scores and targets are `[N, L]` and labels is `None`; in pieces with mostly unknown targets all
        three are `[K]`, one for each known entry.
        """
        for scores, own_targets in aligned(self.preds, self.targets):
            yield scores, own_targets, None
        for scores, columns, positive in aligned(self.known_preds, self.known_labels, self.known_positive):
            yield scores, positive.to(torch.int8), columns.long()


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
