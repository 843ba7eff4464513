"""Which labels of an image are left out, whatever their rank: those that lose against others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def above_floor(scores: Tensor, num_labels: int) -> Tensor:
    """Leave out labels that score no higher than the best floor, and the floors.

    Args:
        scores: `[R, L + F]`, labels first.
        num_labels: `L`.

    Returns:
        `[R, L]`, `-inf` for labels that are left out.

    >>> above_floor(torch.tensor([[3.0, 1.0, 0.0, 2.0]]), 2)
    tensor([[3., -inf]])
    """
    labels, floors = scores[:, :num_labels], scores[:, num_labels:]
    if floors.shape[1] == 0:
        return labels
    return labels.masked_fill(labels <= floors.amax(dim=1, keepdim=True), -torch.inf)


def best_of_groups(scores: Tensor, groups: Sequence[Sequence[int] | Tensor]) -> Tensor:
    """Leave out labels that are not the best of each of their groups.

    Args:
        scores: `[R, L]`.
        groups: Columns of labels of which only one may be given out; as tensors, on the device of the scores.

    Returns:
        `[R, L]`, `-inf` for labels that are left out.

    >>> best_of_groups(torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), [[0, 1]])
    tensor([[3., -inf, 0.],
            [-inf, 1., 2.]])
    """
    if not groups:
        return scores
    left = scores.clone()
    for group in (group if isinstance(group, Tensor) else list(group) for group in groups):
        loses = torch.ones_like(scores[:, group], dtype=torch.bool)
        loses.scatter_(1, scores[:, group].argmax(dim=1, keepdim=True), False)
        left[:, group] = left[:, group].masked_fill(loses, -torch.inf)
    return left
