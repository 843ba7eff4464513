"""Losses that treat each label as a binary classification."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.losses.base import check_pair
from ovml.losses.scaled import ScaledLoss
from ovml.utils.errors import UserError


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
    `-q^gamma_absent * log(1 - q)`. The loss is the sum over labels and the mean over images. Other arguments are
    those of `ScaledLoss`.

    Args:
        gamma_absent: Focusing exponent of absent labels.
        gamma_present: Focusing exponent of present labels.
        clip: Probability shift: absent labels with a lower probability cost nothing.

    Raises:
        UserError: A gamma is negative, or `clip` is not in [0, 1).

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
    ) -> None:
        super().__init__(scale, offset, learned)
        if gamma_absent < 0 or gamma_present < 0 or not 0 <= clip < 1:
            raise UserError(
                "AsymmetricLoss: gamma_absent and gamma_present must be at least 0, clip from 0 to below 1; "
                f"got {gamma_absent}, {gamma_present}, {clip}"
            )
        self.gamma_absent = gamma_absent
        self.gamma_present = gamma_present
        self.clip = clip

    def per_label(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the asymmetric loss `[B, L]`."""
        # In logarithms, because the probabilities of large logits round to 0 and 1, which have no finite logarithm.
        log_p, log_not_p, log_clip = F.logsigmoid(logits), F.logsigmoid(-logits), logits.new_tensor(self.clip).log()
        of_present = -(self.gamma_present * log_not_p).exp() * log_p
        shifted = (log_p.exp() - self.clip).clamp(min=torch.finfo(logits.dtype).tiny)
        of_absent = -(shifted**self.gamma_absent) * torch.logaddexp(log_not_p, log_clip).clamp(max=0)
        return torch.where(targets == 1, of_present, of_absent)
