"""Losses that treat each label as a binary classification."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.losses.base import check_pair
from ovml.losses.scaled import ScaledLoss
from ovml.utils.errors import UserError, check_positive


class PerLabelLoss(ScaledLoss):
    """Base class of losses that are a sum over labels, averaged over images. Subclasses implement `per_label`.

    Example:
        >>> class Hinge(PerLabelLoss):
        ...     def per_label(self, logits, targets):
        ...         return (1 - logits * (2 * targets - 1)).clamp(min=0)
        >>> Hinge()(torch.tensor([[0.5, 0.5, 9.0]]), torch.tensor([[1, 0, -1]]))
        tensor(2.)
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar; logits and targets are `[B, L]`, and unknown labels are ignored."""
        check_pair(logits, targets)
        return self.per_label(self.scaled(logits), targets).masked_fill(targets == -1, 0).sum(dim=1).mean()

    @abstractmethod
    def per_label(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each label, `[B, L]`; values of unknown labels are ignored."""


class BinaryCrossEntropy(PerLabelLoss):
    """Binary cross-entropy: sum over labels, mean over images.

    A present label costs `-log sigmoid(z)`, an absent label `-log sigmoid(-z)`, with `z = scale * logit + offset`.
    Arguments are those of `ScaledLoss`.

    Example:
        >>> loss = BinaryCrossEntropy()
        >>> loss(torch.tensor([[0.0, 5.0]]), torch.tensor([[1, -1]]))
        tensor(0.6931)
    """

    def per_label(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy `[B, L]`."""
        return F.binary_cross_entropy_with_logits(logits, (targets == 1).to(logits.dtype), reduction="none")


class AsymmetricLoss(PerLabelLoss):
    r"""Asymmetric loss, which weighs down easy absent labels (Ridnik et al., ICCV 2021).

    The preprint is Ben-Baruch et al., arXiv 2009.14119. With `p = sigmoid(scale * logit + offset)` and
    `q = max(p - clip, 0)`, a present label costs `-(1 - p)^gamma_present * log(p)`, an absent label
    `-q^gamma_absent * log(1 - q)`. The loss of an image is the sum over labels. Other arguments are those of
    `ScaledLoss`.

    The published training computes the focusing weights `(1 - p)^gamma_present` and `q^gamma_absent` without gradient.
    The value is the same either way; with their gradient, absent labels pull about two to five times as hard.

    Args:
        gamma_absent: Focusing exponent of absent labels.
        gamma_present: Focusing exponent of present labels.
        clip: Probability shift: absent labels with a lower probability cost nothing.
        detach_focus: Whether the focusing weights are constants to the gradient, as in the published training.
        eps: Smallest number whose logarithm is taken, 1e-8 in the published code: a present label with `p` below it has
            no gradient any more. 0 takes exact logarithms, which are finite here.
        reduction: `mean` or `sum` over images; the published code sums. With several devices the sum is weighted so
            that gradients are a mean over devices.
        factor: Factor of the loss.

    Raises:
        UserError: A gamma is negative, `clip` or `eps` is not in [0, 1), or the factor is not positive.

    Example:
        >>> AsymmetricLoss()(torch.tensor([[0.0, -4.0]]), torch.tensor([[1, 0]]))
        tensor(0.6931)
    """

    def __init__(
        self,
        gamma_absent: float = 4.0,
        gamma_present: float = 0.0,
        clip: float = 0.05,
        scale: float = 1.0,
        offset: float = 0.0,
        learned: bool = False,
        detach_focus: bool = True,
        eps: float = 0.0,
        reduction: Literal["mean", "sum"] = "mean",
        factor: float = 1.0,
    ) -> None:
        super().__init__(scale, offset, learned)
        if gamma_absent < 0 or gamma_present < 0 or not 0 <= clip < 1:
            raise UserError(
                "AsymmetricLoss: gamma_absent and gamma_present must be at least 0, clip from 0 to below 1; "
                f"got {gamma_absent}, {gamma_present}, {clip}"
            )
        if not 0 <= eps < 1:
            raise UserError(f"AsymmetricLoss: eps must be from 0 to below 1; got {eps}")
        check_positive(self, factor=factor)
        self.gamma_absent = gamma_absent
        self.gamma_present = gamma_present
        self.clip = clip
        self.detach_focus = detach_focus
        self.eps = eps
        self.reduction = reduction
        self.factor = factor

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar; logits and targets are `[B, L]`, and unknown labels are ignored."""
        loss = self.factor * super().forward(logits, targets)
        return loss * len(logits) if self.reduction == "sum" else loss

    def per_label(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the asymmetric loss `[B, L]`."""
        # In logarithms, because the probabilities of large logits round to 0 and 1, which have no finite logarithm.
        log_p, log_not_p, log_clip = F.logsigmoid(logits), F.logsigmoid(-logits), logits.new_tensor(self.clip).log()
        log_not_q = torch.logaddexp(log_not_p, log_clip).clamp(max=0)
        focus_present = (self.gamma_present * log_not_p).exp()
        focus_absent = (log_p.exp() - self.clip).clamp(min=torch.finfo(logits.dtype).tiny) ** self.gamma_absent
        if self.detach_focus:
            focus_present, focus_absent = focus_present.detach(), focus_absent.detach()
        least = math.log(self.eps) if self.eps else -math.inf
        of_present, of_absent = (
            -focus * log.clamp(min=least) for focus, log in ((focus_present, log_p), (focus_absent, log_not_q))
        )
        return torch.where(targets == 1, of_present, of_absent)
