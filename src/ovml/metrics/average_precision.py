"""Mean average precision over labels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ovml.metrics.functional.average_precision import average_precision


class MultilabelMeanAveragePrecision(Metric):
    """Mean over labels of the exact average precision over images; unknown entries are left out.

    Where every label has a positive this is torchmetrics' `MultilabelAveragePrecision(thresholds=None)`.

    Args:
        empty_labels: Labels without positives: `skip` leaves them out, `zero` counts them with 0 (as the
            published MKT code does, and torchmetrics).
        average: `macro` for the mean, `none` for the value of every label `[L]`.
        ignore_index: Mark of unknown entries.
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

    def __init__(
        self,
        empty_labels: Literal["skip", "zero"] = "skip",
        average: Literal["macro", "none"] = "macro",
        ignore_index: int = -1,
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
        self.add_state("preds", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, targets: Tensor) -> None:
        """Add scores `[B, L]` and targets `[B, L]`."""
        if preds.ndim != 2 or preds.shape != targets.shape:
            raise ValueError(
                f"preds and targets must both be [B, L]; got {list(preds.shape)} and {list(targets.shape)}"
            )
        # Of one type on every process, or they could not be gathered.
        self.preds.append(preds.detach().float())
        # In one byte whatever the mark is: 1 present, 0 absent, -1 unknown.
        self.targets.append((targets == 1).to(torch.int8).masked_fill(targets == self.ignore_index, -1))

    def compute(self) -> Tensor:
        """Return the mean, or `[L]` with `average="none"` (NaN for skipped labels)."""
        per_label = average_precision(dim_zero_cat(self.preds), dim_zero_cat(self.targets))
        if self.empty_labels == "zero":
            per_label = per_label.nan_to_num(0)
        return per_label.nanmean() if self.average == "macro" else per_label
