"""RAM's head: matching of patches and labels by optimal transport."""

from __future__ import annotations

import math
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, TeacherFeatures
from ovml.heads.chunks import chunks
from ovml.heads.sinkhorn import sinkhorn
from ovml.utils.errors import check_at_most, check_not_negative, check_positive
from ovml.utils.tensors import full_precision


class OptimalTransportHead(Head):
    r"""Matching of patches and labels by optimal transport (RAM; Tan et al., CVPR 2025, arXiv 2503.15337).

    With cosines `S [P, L]` of patches and labels and `s [L]` of the global embedding and labels:

    - cost `C = 1 - softmax_l(cost_scale * S)`: low where a patch prefers a label to all others;
    - row marginal `a = softmax_p(max_l S / presence_temperature)`: patches that show any of the labels get more mass
      (label presence detection); column marginal `b = 1 / L`;
    - plan `T = sinkhorn(C, a, b, epsilon)`, without gradient;
    - local logits `z_l = sum_p T_pl S_pl / local_temperature`, global logits `g_l = s_l / temperature`;
    - the paper's score is `(softmax_l(g) + softmax_l(z)) / 2`. The head returns its **logarithm**, which ranks labels
      and images the same, does not underflow, and has a size that losses can use.

    Plan and softmaxes run over all labels, so a score depends on the set of labels that is scored. The columns of `T`
    sum to `1 / L`, so `z` shrinks as labels are added and `local_temperature` fits one number of labels. The published
    value 2e-4 is for the 925 labels of NUS-WIDE.

    In training the original CLIP constrains the plan (knowledge-constrained optimal transport), and the losses of both
    logits are summed, as published. `Q = softmax_p(20 * softmax_l(cost_scale * S'))`, with cosines `S'` of the
    original CLIP and the entries of absent labels set to the minimum of the batch. The objective of the plan gains
    `knowledge` times the divergence from `Q`: the cost grows by `-knowledge * log Q`, epsilon by `knowledge`.

    `RAMHead` is the published form, whose score of an image depends on the images that it is computed with.

    Args:
        temperature: Initial temperature of the global logits (0.01 in CLIP).
        local_temperature: Initial temperature of the local logits.
        epsilon: Weight of the plan's entropy.
        iterations: Maximum number of Sinkhorn iterations. The default epsilon needs about ten. An exported model
            always runs all of them.
        tolerance: See `ovml.heads.sinkhorn.sinkhorn`.
        cost_scale: Factor of the cosines in the cost. The published code uses CLIP's `logit_scale.exp()`: 100 for
            OpenAI's models, 31 for `ovml-demo`.
        presence_temperature: Temperature of the row marginal.
        learned: Whether both temperatures are trained in the vision stage, as logarithms.
        knowledge: Weight of the divergence from the original CLIP in training; 0 for none.

    Raises:
        UserError: An argument is out of range.

    Example:
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> scores = OptimalTransportHead()(features, torch.randn(5, 8)).exp()
        >>> scores.sum(dim=1).allclose(torch.ones(2))
        True
    """

    def __init__(
        self,
        temperature: float = 0.01,
        local_temperature: float = 2e-4,
        epsilon: float = 0.1,
        iterations: int = 30,
        tolerance: float = 1e-4,
        cost_scale: float = 100.0,
        presence_temperature: float = 0.1,
        learned: bool = True,
        knowledge: float = 0.05,
    ) -> None:
        super().__init__()
        check_positive(self, temperature=temperature, local_temperature=local_temperature, epsilon=epsilon)
        check_positive(self, cost_scale=cost_scale, presence_temperature=presence_temperature)
        check_positive(self, iterations=iterations)
        check_at_most(self, 10_000, iterations=iterations)
        check_not_negative(self, tolerance=tolerance, knowledge=knowledge)
        self.temperature = temperature
        self.local_temperature = local_temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.tolerance = tolerance
        self.cost_scale = cost_scale
        self.presence_temperature = presence_temperature
        self.learned = learned
        self.knowledge = knowledge
        self.uses_teacher = knowledge > 0
        if learned:
            self.make_temperatures()

    def make_temperatures(self) -> None:
        """Create the parameters of both temperatures."""
        self.log_temperature = nn.Parameter(torch.tensor(math.log(self.temperature)))
        self.log_local_temperature = nn.Parameter(torch.tensor(math.log(self.local_temperature)))

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return the logarithm `[B, L]` of the paper's score, in float32 or wider; `exp` of a row sums to 1."""
        whole, local = self._both_logits(features, label_embeds, None)
        return torch.logaddexp(whole.log_softmax(-1), local.log_softmax(-1)) - math.log(2)

    def training_logits(
        self, features: ImageFeatures, label_embeds: Tensor, targets: Tensor, teacher: TeacherFeatures | None
    ) -> tuple[Tensor, ...]:
        """Return global logits `g` and local logits `z`, `[B, L]` each; a teacher, if given, constrains the plan."""
        knowledge = None
        if self.knowledge and teacher is not None:
            knowledge = self.prior(teacher.patch_embeds, teacher.label_embeds, targets)
        return self._both_logits(features, label_embeds, knowledge)

    def _both_logits(
        self, features: ImageFeatures, label_embeds: Tensor, knowledge: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # Entries of the plan are about 1 / (P * L), too small for half precision.
        whole, patches, labels = (F.normalize(full_precision(x), dim=-1) for x in (*features, label_embeds))
        temperature, local_temperature = self.temperatures()
        return whole @ labels.T / temperature, self.match(patches, labels, knowledge) / local_temperature

    def match(self, patches: Tensor, labels: Tensor, knowledge: Tensor | None) -> Tensor:
        """Return `sum_p T_pl S_pl`, `[B, L]`.

        Args:
            patches: `[B, P, D]`, L2-normalised.
            labels: `[L, D]`, L2-normalised.
            knowledge: See `plan`.
        """
        size = patches.shape[1] * labels.shape[0]
        of_teacher = repeat(None) if knowledge is None else chunks(knowledge, size)
        matched = []
        for chunk, bound in zip(chunks(patches, size), of_teacher, strict=False):
            cosines = chunk @ labels.T
            matched.append((self.plan(cosines, bound) * cosines).sum(dim=1))
        return torch.cat(matched)

    @torch.no_grad()
    def plan(self, cosines: Tensor, knowledge: Tensor | None = None) -> Tensor:
        """Return the transport plan `[B, P, L]`; it sums to 1 for each image.

        Args:
            cosines: `[B, P, L]`.
            knowledge: `log Q`, `[B, P, L]`; given in training only.
        """
        cost, epsilon = 1 - (self.scale * cosines).softmax(dim=-1), self.epsilon
        if knowledge is not None:
            cost, epsilon = cost - self.knowledge * knowledge, epsilon + self.knowledge
        presence = (cosines.amax(dim=-1) / self.presence_temperature).softmax(dim=-1)
        uniform = torch.ones_like(cosines[:, 0]) / cosines.shape[-1]
        return self.transport(cost, presence, uniform, epsilon)

    def transport(self, cost: Tensor, rows: Tensor, columns: Tensor, epsilon: float) -> Tensor:
        """Return the plan of least cost for its marginals; see `ovml.heads.sinkhorn`."""
        return sinkhorn(cost, rows, columns, epsilon, self.iterations, self.tolerance)

    @torch.no_grad()
    def prior(self, patch_embeds: Tensor, label_embeds: Tensor, targets: Tensor) -> Tensor:
        """Return `log Q`, `[B, P, L]`: where the original CLIP finds each present label."""
        patches, labels = (F.normalize(full_precision(x), dim=-1) for x in (patch_embeds, label_embeds))
        preferred = (self.scale * patches @ labels.T).softmax(dim=-1)
        seen_at = (20 * preferred).log_softmax(dim=1)
        return torch.where((targets == 0).unsqueeze(1), seen_at.min(), seen_at)

    @property
    def scale(self) -> float | Tensor:
        """Factor of the cosines in the cost."""
        return self.cost_scale

    def temperatures(self) -> tuple[float | Tensor, float | Tensor]:
        """Temperatures of the global and of the local logits."""
        if self.learned:
            return full_precision(self.log_temperature).exp(), full_precision(self.log_local_temperature).exp()
        return self.temperature, self.local_temperature
