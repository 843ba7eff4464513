"""RAM's head as published."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ovml.heads.optimal_transport import OptimalTransportHead
from ovml.heads.sinkhorn import batch_sinkhorn
from ovml.utils.errors import UserError, check_positive
from ovml.utils.tensors import full_precision


class RAMHead(OptimalTransportHead):
    r"""RAM's matching as published (Tan et al., CVPR 2025, arXiv 2503.15337); equations as for `OptimalTransportHead`.

    Three things differ from that head:

    - The plans of a batch stop together (`batch_sinkhorn`), so a score depends on the images of the batch. In the
      reference numbers, scores of an image alone differ by up to 0.012.
    - The temperatures themselves are parameters, not their logarithms: a step of an optimizer changes them by an
      amount, not by a factor.
    - The factor of the cosines in the cost is the CLIP's own (`logit_scale.exp()`), and the temperature of the global
      logits starts as its inverse. Both are kept in checkpoints and saved models.

    Args:
        local_temperature: Initial temperature of the local logits. The published code has 2e-4 for the 925 labels of
            NUS-WIDE, 2e-3 for the 48 of COCO.
        epsilon: Weight of the plan's entropy.
        iterations: Maximum number of Sinkhorn iterations. An exported model always runs all of them.
        tolerance: See `batch_sinkhorn`.
        presence_temperature: Temperature of the row marginal.
        knowledge: Weight of the divergence from the original CLIP in training; 0 for none.
        logit_scale: Factor of the cosines in the cost. Default: the CLIP's own.

    Raises:
        UserError: An argument is out of range.

    Example:
        >>> from ovml.encoders import ImageFeatures
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> RAMHead(logit_scale=100.0)(features, torch.randn(5, 8)).exp().sum(dim=1).allclose(torch.ones(2))
        True
    """

    clip_scale: Tensor
    tau_global: nn.Parameter
    tau_local: nn.Parameter

    def __init__(
        self,
        local_temperature: float = 2e-4,
        epsilon: float = 0.1,
        iterations: int = 100,
        tolerance: float = 1e-3,
        presence_temperature: float = 0.1,
        knowledge: float = 0.05,
        logit_scale: float | None = None,
    ) -> None:
        super().__init__(
            local_temperature=local_temperature,
            epsilon=epsilon,
            iterations=iterations,
            tolerance=tolerance,
            presence_temperature=presence_temperature,
            knowledge=knowledge,
        )
        check_positive(self, logit_scale=logit_scale)
        self.logit_scale = logit_scale
        self._scale_is_set = False
        if logit_scale is not None:
            self.set_logit_scale(logit_scale)

    def make_temperatures(self) -> None:
        """Create the parameters of both temperatures, and the factor of the cosines."""
        self.register_buffer("clip_scale", torch.tensor(self.cost_scale))
        self.tau_global = nn.Parameter(torch.tensor(self.temperature))
        self.tau_local = nn.Parameter(torch.tensor(self.local_temperature))

    def set_logit_scale(self, scale: float) -> None:
        """Take the CLIP's factor of the cosines, once: a trained head keeps its own.

        Raises:
            UserError: It is not above 0, or infinite.
        """
        if not self._scale_is_set:
            if not 0 < scale < math.inf:
                raise UserError(f"RAMHead: the CLIP's factor of the cosines is {scale}; give the head's logit_scale")
            self.clip_scale.fill_(scale)
            self.tau_global.data.fill_(1 / scale)
            self._scale_is_set = True

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines in the cost."""
        return full_precision(self.clip_scale)

    def temperatures(self) -> tuple[Tensor, Tensor]:
        """Temperatures of the global and of the local logits."""
        return full_precision(self.tau_global), full_precision(self.tau_local)

    def match(self, patches: Tensor, labels: Tensor, knowledge: Tensor | None) -> Tensor:
        """Return `sum_p T_pl S_pl`, `[B, L]`, of all images of the batch together."""
        cosines = patches @ labels.T
        return (self.plan(cosines, knowledge) * cosines).sum(dim=1)

    def transport(self, cost: Tensor, rows: Tensor, columns: Tensor, epsilon: float) -> Tensor:
        """Return the plans of the batch, which stop together."""
        return batch_sinkhorn(cost, rows, columns, epsilon, self.iterations, self.tolerance)
