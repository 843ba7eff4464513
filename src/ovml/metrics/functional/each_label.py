"""A number for every label, of the scores of one process or of several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovml.metrics.processes import Processes
from ovml.utils.tensors import full_precision

BLOCK = 1 << 20
"""Scores that a thread works on at once: some ten MB of work space."""
SCORE_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Array = np.ndarray[Any, Any]
OfLabel = Callable[[Array, Array], float]
"""From one label's known scores `[N]` and whether each is present `[N]` to a number."""


@dataclass(frozen=True)
class KeptScores:
    """The scores of a process, in pieces; the pieces of one tensor need not be as long as those of another.

    Attributes:
        preds: Scores of images whose targets are mostly known, `[N_i, L]`.
        targets: Their targets as bytes: 1 present, 0 absent, -1 unknown, `[N_i, L]`.
        known_preds: Scores of single entries `[K_i]`: what is kept of images whose targets are mostly unknown.
        known_labels: Label of each, `[K_i]`.
        known_positive: Whether it is present, else absent, `[K_i]`.
    """

    preds: Sequence[Tensor]
    targets: Sequence[Tensor]
    known_preds: Sequence[Tensor] = field(default=())
    known_labels: Sequence[Tensor] = field(default=())
    known_positive: Sequence[Tensor] = field(default=())


def each_label(functions: Sequence[OfLabel], kept: KeptScores, num_labels: int, processes: Processes) -> Tensor:
    """Numbers of every label, over the scores of all processes.

    Each process works on its own share of the labels, for which the others send it their columns, a block at a time. No
    process ever holds the scores of all: at most those that it kept, and a block.

    Args:
        functions: Each computes one number of a label; the order of its images is not given.
        kept: This process's scores.
        num_labels: `L`; 0 where this process has no scores.
        processes: Those that take part.

    Returns:
        `[F, L]` float32, the same on all processes.
    """
    rows, entries = (sum(map(len, pieces)) for pieces in (kept.preds, kept.known_preds))
    own_type = next((piece.dtype for piece in (*kept.preds, *kept.known_preds) if len(piece)), None)
    header = torch.tensor([rows, entries, num_labels, -1 if own_type is None else SCORE_TYPES.index(own_type)])
    all_rows, all_entries, label_counts, types = processes.gather(header).T.tolist()
    dtype = reduce(torch.promote_types, [SCORE_TYPES[number] for number in types if number >= 0], torch.float16)
    bounds = [max(label_counts) * rank // processes.size for rank in range(processes.size + 1)]
    labels = range(bounds[processes.rank], bounds[processes.rank + 1])
    of_entries = _Entries(kept, bounds, dtype, processes) if any(all_entries) else None

    def numbers(first: int, scores: Tensor, targets: Tensor) -> list[list[float]]:
        """Numbers of the labels from `first` on, of their columns `[C, N]`."""
        found = []
        for label, (row, own) in enumerate(zip(_numpy(scores), _numpy(targets), strict=True), start=first):
            known = own != -1
            pair = (row, own == 1) if known.all() else (row[known], own[known] == 1)
            if of_entries is not None:
                pair = of_entries.joined(label - labels.start, pair)
            found.append([function(*pair) for function in functions])
        return found

    threads = processes.threads()
    step = max(1, BLOCK // max(1, sum(all_rows)))
    with ThreadPoolExecutor(threads) as pool:  # NumPy sorts without holding Python's lock
        if processes.size == 1:
            blocks = pool.map(lambda first: numbers(first, *_columns(kept, first, first + step)), labels[::step])
            found = [values for block in blocks for values in block]
        else:
            found = []
            for first in range(0, -(-max(label_counts) // processes.size), step * threads):
                starts = [min(start + first, end) for start, end in pairwise(bounds)]
                ends = [min(start + step * threads, end) for start, end in zip(starts, bounds[1:], strict=True)]
                columns = _exchanged(kept, starts, ends, all_rows, dtype, processes)
                parts = zip(*(part.split(step) for part in columns), strict=True)
                tasks = [pool.submit(numbers, starts[processes.rank] + i * step, *part) for i, part in enumerate(parts)]
                found += [values for task in tasks for values in task.result()]
    return _of_all_labels(found, len(functions), bounds, processes)


def _columns(kept: KeptScores, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Scores and targets of some labels over this process's images, `[C, N]`, contiguous."""
    none = torch.empty(0, end - start)
    joined = (
        torch.cat([piece[:, start:end] for piece in pieces] or [none.to(kind)])
        for pieces, kind in ((kept.preds, torch.float32), (kept.targets, torch.int8))
    )
    scores, targets = (values.T.contiguous() for values in joined)
    return scores, targets


def _exchanged(
    kept: KeptScores,
    starts: Sequence[int],
    ends: Sequence[int],
    all_rows: Sequence[int],
    dtype: torch.dtype,
    processes: Processes,
) -> tuple[Tensor, Tensor]:
    """Send each process its columns; returns those of this process over all images, `[C, N]`."""
    own = ends[processes.rank] - starts[processes.rank]
    if not any(all_rows):
        return torch.empty(own, 0), torch.empty(own, 0, dtype=torch.int8)
    sent = [_columns(kept, *bounds) for bounds in zip(starts, ends, strict=True)]
    received = (
        processes.exchange([part.flatten().to(kind) for part in parts])
        for parts, kind in zip(zip(*sent, strict=True), (dtype, torch.int8), strict=True)
    )
    scores, targets = (
        torch.cat([part.view(own, rows) for part, rows in zip(parts, all_rows, strict=True)], dim=1)
        for parts in received
    )
    return scores, targets


class _Entries:
    """The single entries of this process's labels, from all processes, sorted by label."""

    def __init__(self, kept: KeptScores, bounds: Sequence[int], dtype: torch.dtype, processes: Processes) -> None:
        kinds = ((kept.known_preds, dtype), (kept.known_labels, torch.int32), (kept.known_positive, torch.bool))
        entries = self._sorted(
            torch.cat([piece.to(kind) for piece in pieces] or [torch.empty(0, dtype=kind)]) for pieces, kind in kinds
        )
        if processes.size > 1:
            ends = torch.searchsorted(
                entries[1], torch.tensor(bounds[1:], dtype=torch.int32, device=entries[1].device)
            ).tolist()
            sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
            entries = self._sorted([torch.cat(processes.exchange(values.split(sizes))) for values in entries])
        start, end = bounds[processes.rank], bounds[processes.rank + 1]
        cuts = torch.bincount(entries[1] - start, minlength=end - start).cumsum(0).cpu().numpy()[:-1]
        self._scores, self._positive = (np.split(_numpy(values), cuts) for values in (entries[0], entries[2]))

    @staticmethod
    def _sorted(entries: Iterable[Tensor]) -> list[Tensor]:
        scores, labels, positive = entries
        order = torch.argsort(labels, stable=True)
        return [values[order] for values in (scores, labels, positive)]

    def joined(self, position: int, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        """Scores of a label, and whether it is present, with its single entries."""
        own = self._scores[position], self._positive[position]
        if not len(pair[0]):
            return own
        scores, positive = (np.concatenate(parts) for parts in zip(pair, own, strict=True))
        return scores, positive


def _of_all_labels(found: list[list[float]], num: int, bounds: Sequence[int], processes: Processes) -> Tensor:
    """Numbers `[F, L]` of all labels from those of each process's own."""
    shares = [end - start for start, end in pairwise(bounds)]
    padded = torch.zeros(max(shares), num, dtype=torch.float64)
    padded[: len(found)] = torch.tensor(found, dtype=torch.float64).view(-1, num)
    parts = processes.gather(padded)
    return torch.cat([part[:share] for part, share in zip(parts, shares, strict=True)]).T.float()


def _numpy(values: Tensor) -> Array:
    array: Array = full_precision(values).cpu().numpy()  # NumPy has no bfloat16
    return array
