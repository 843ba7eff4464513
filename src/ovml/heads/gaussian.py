"""PIAA's head: a Gaussian for each label, fitted to patches of images without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, check_several
from ovml.heads.chunks import chunks
from ovml.heads.pool import EmbedTexts, PoolFitted
from ovml.utils.errors import UserError, check_positive, check_whole
from ovml.vocabulary import LabelVocabulary


class GaussianHead(PoolFitted, Head):
    r"""Discriminant analysis of patches with labels that CLIP itself gives them, as PIAA's code does it.

    Fitted on images without labels. With length-one patches `f` and labels `t`:

    1. A patch belongs to the label of its highest cosine; of each label the `per_label` patches with the lowest entropy
       of `p = softmax(60 cos)` are kept.
    2. Gaussians with a mean for each label, weighted by `p`, and one covariance: `y = f W + b`. A label without a patch
       has its text embedding as its mean.
    3. Patches anew: `q = softmax(sharpness * y)`, those with `q` at least mean plus deviation of their label's; then
       the Gaussians of these.

    Score of an image: `0.1 softmax(global_scale cos) + 0.9 softmax(local_scale r)` with
    `r = max_p softmax((f_p W + b) / 500)`. The softmaxes run over the labels that are scored together.

    Args:
        per_label: Patches of each label.
        sharpness: The published code has 100 for VOC, 500 for NUS-WIDE, where labels are kept whole or lost, and 0.01
            for COCO.
        global_scale: Scale of the global cosines: 80; 10 for NUS-WIDE.
        local_scale: Scale of the patches' part: 400; 200 for VOC.

    Raises:
        UserError: An argument is out of range; or, in `forward`, the head is not fitted for a label.

    Example:
        >>> head, labels = GaussianHead(per_label=8), F.normalize(torch.randn(3, 8), dim=-1)
        >>> head.begin(LabelVocabulary(("cat", "dog", "moon")), labels, lambda texts: torch.randn(len(texts), 8))
        >>> for _ in range(4):
        ...     head.observe(ImageFeatures(torch.randn(2, 8), torch.randn(2, 16, 8)))
        >>> head.finish()
        >>> head(ImageFeatures(torch.randn(2, 8), torch.randn(2, 16, 8)), labels[:2]).sum(dim=1).allclose(torch.ones(2))
        True
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, per_label: int = 512, sharpness: float = 0.01, global_scale: float = 80.0, local_scale: float = 400.0
    ) -> None:
        super().__init__()
        check_whole(self, 2, per_label=per_label)
        check_positive(self, sharpness=sharpness, global_scale=global_scale, local_scale=local_scale)
        self.per_label = per_label
        self.sharpness = sharpness
        self.global_scale = global_scale
        self.local_scale = local_scale
        self.register_buffer("weight", torch.empty(0, 0))
        self.register_buffer("bias", torch.empty(0))
        self._kept: list[Kept] = []
        self._not_found: list[int] = []

    @property
    def not_found(self) -> Sequence[int]:
        """Labels without a patch, whose text embedding stands in."""
        return self._not_found

    def begin(self, vocabulary: LabelVocabulary, label_embeds: Tensor, embed: EmbedTexts) -> None:
        """Start to fit, with nothing kept."""
        super().begin(vocabulary, label_embeds, embed)
        width = self.label_embeds.shape[1]
        none = torch.empty(0, device=label_embeds.device)
        self._kept = [Kept(none.view(0, width), none, none) for _ in label_embeds]

    @torch.no_grad()
    def observe(self, features: ImageFeatures) -> None:
        """Keep the patches of a batch that are surer than those kept of their label."""
        patches = F.normalize(features.patch_embeds.flatten(0, 1).float(), dim=-1)
        cosines = patches @ self.label_embeds.T
        shares = (60 * cosines).softmax(dim=-1)
        entropy = -(shares * (shares + 1e-12).log()).sum(dim=-1)
        label = cosines.argmax(dim=-1)
        share = shares.gather(1, label.unsqueeze(-1)).squeeze(-1)
        for place in label.unique().tolist():
            own = label == place
            both = Kept(*map(torch.cat, zip(self._kept[place], (patches[own], share[own], entropy[own]), strict=True)))
            best = both.entropy.argsort(stable=True)[: self.per_label]
            self._kept[place] = Kept(*(x[best] for x in both))

    @torch.no_grad()
    def finish(self) -> None:
        """Fit the Gaussians.

        Raises:
            UserError: There are fewer than two patches.
        """
        patches, shares = (torch.cat([getattr(kept, name) for kept in self._kept]) for name in ("patches", "shares"))
        sizes = torch.tensor([len(kept.patches) for kept in self._kept], device=patches.device)
        labels = torch.arange(len(sizes), device=patches.device).repeat_interleave(sizes)
        weight, bias = gaussians(patches, shares, labels, self.label_embeds)
        sure, labels, shares = surest(patches, weight, bias, self.sharpness)
        self.weight, self.bias = gaussians(patches[sure], shares[sure], labels[sure], self.label_embeds)
        self._not_found = (labels[sure].bincount(minlength=len(sizes)) == 0).nonzero().flatten().tolist()
        self._kept = []

    def fitted_shapes(self, num_labels: int, width: int) -> dict[str, tuple[int, ...]]:
        """A weight for each label, and its bias."""
        return {"weight": (width, num_labels), "bias": (num_labels,)}

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Scores `[B, L]`, which sum to 1 for each image."""
        check_several(label_embeds)
        own = self.places(label_embeds)
        whole, labels = F.normalize(features.global_embeds, dim=-1), self.label_embeds[own].float()
        patches = F.normalize(features.patch_embeds, dim=-1)
        best = ((patches @ self.weight[:, own].float() + self.bias[own].float()) / 500).softmax(dim=-1).amax(dim=1)
        global_part = (self.global_scale * whole @ labels.T).softmax(dim=-1)
        return 0.1 * global_part + 0.9 * (self.local_scale * best).softmax(dim=-1)


class Kept(NamedTuple):
    """Patches of a label: embeddings `[N, D]`, how much each belongs to it `[N]`, entropy over all labels `[N]`."""

    patches: Tensor
    shares: Tensor
    entropy: Tensor


def gaussians(patches: Tensor, shares: Tensor, labels: Tensor, label_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Discriminants `W [D, L]` and `b [L]` of Gaussians with one covariance.

    Args:
        patches: `[N, D]`.
        shares: `[N]`; how much each belongs to its label.
        labels: `[N]`, the label of each.
        label_embeds: `[L, D]`, the means of labels without a patch.

    Raises:
        UserError: There are fewer than two patches.
    """
    count, width = patches.shape
    if count < 2:
        raise UserError(f"{count} patches are too few to fit Gaussians; give more images")
    total = patches.new_zeros(len(label_embeds)).index_add(0, labels, shares).unsqueeze(-1)
    sums = patches.new_zeros(label_embeds.shape).index_add(0, labels, patches * shares.unsqueeze(-1))
    means = torch.where(total > 0, sums / total.clamp(min=torch.finfo(total.dtype).tiny), label_embeds)
    covariance = (patches - means[labels]).T.cov()
    shrunk = (count - 1) * covariance + covariance.trace() * torch.eye(width).to(patches)
    precision = width * torch.linalg.pinv(shrunk)
    weight = precision @ means.T
    return weight, -math.log(len(label_embeds)) - 0.5 * (means * weight.T).sum(dim=-1)


def surest(patches: Tensor, weight: Tensor, bias: Tensor, sharpness: float) -> tuple[Tensor, Tensor, Tensor]:
    """Patches `[N, D]` that belong to their label more surely than most of it do, by discriminants `[D, L]`, `[L]`.

    A label with one patch loses it, as in the published code.

    Returns:
        Which `[N]` are kept; the label of each `[N]`; and how much each belongs to it `[N]`.
    """
    rows = []
    for part in chunks(patches, len(bias)):
        logits = part @ weight + bias
        shares, label = (sharpness * logits).softmax(dim=-1), logits.argmax(dim=-1)
        rows.append(
            (label, shares.gather(1, label.unsqueeze(-1)).squeeze(-1), shares.argmax(dim=-1), shares.amax(dim=-1))
        )
    labels, own, again, best = map(torch.cat, zip(*rows, strict=True))
    sure = torch.zeros_like(labels, dtype=torch.bool)
    for place in labels.unique().tolist():
        of_label = labels == place
        if of_label.sum() > 1:
            sure |= of_label & (own >= own[of_label].mean() + own[of_label].std())
    return sure, again, best
