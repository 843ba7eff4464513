"""DualCoOp's head: patches weighed by the present prompt, a logit for present and one for absent."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head
from ovml.heads.chunks import chunks
from ovml.utils.errors import UserError, check_positive


class DualCoOpHead(Head):
    r"""Difference of a present and an absent logit (DualCoOp; Sun et al., NeurIPS 2022, arXiv 2206.09541).

    With L2-normalised regions `x_r` and embeddings `y+_l`, `y-_l` of a label, which `DualCoOpPrompt` gives:

    - `w_lr = softmax_r(cos(x_r, y+_l) / temperature)`: the present embedding weighs the regions for both logits;
    - `z+_l = scale * sum_r w_lr cos(x_r, y+_l)`, `z-_l = scale * sum_r w_lr cos(x_r, y-_l)`.

    The head scores `z+ - z-`: the published score is the softmax over both, which is `sigmoid(z+ - z-)`, and the
    published loss depends on nothing else. It is `AsymmetricLoss(2, 1, detach_focus=True, eps=1e-6, reduction="sum")`.

    The published regions are all places of the last map of CLIP's ResNet and their mean, through the value and output
    projection of its attention pooling. Here they are a vision transformer's patch embeddings and, in the place of the
    mean, the global embedding.

    Args:
        temperature: Temperature of the softmax over the regions; 1/20 as published.
        scale: Factor of both logits: 20 times 5, as published, in the place of CLIP's `logit_scale`.
        global_region: Whether the global embedding is a region.

    Raises:
        UserError: An argument is not positive; or label embeddings are not pairs.

    Example:
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> DualCoOpHead()(features, torch.randn(5, 2, 8)).shape
        torch.Size([2, 5])
    """

    takes_pairs = True

    def __init__(self, temperature: float = 0.05, scale: float = 100.0, global_region: bool = True) -> None:
        super().__init__()
        check_positive(self, temperature=temperature, scale=scale)
        self.temperature = temperature
        self.scale = scale
        self.global_region = global_region

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return `z+ - z-`, `[B, L]`; label embeddings are pairs `[L, 2, D]`, the absent one first."""
        absent, present = self.pair_logits(features, label_embeds).unbind(dim=1)
        return present - absent

    def pair_logits(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return both logits `[B, 2, L]`: index 0 is `z-`, index 1 is `z+`."""
        if label_embeds.ndim != 3 or label_embeds.shape[1] != 2:
            raise UserError(
                f"DualCoOpHead: needs pairs of label embeddings [L, 2, D], as of DualCoOpPrompt; got "
                f"{list(label_embeds.shape)}"
            )
        regions = features.patch_embeds
        if self.global_region:
            regions = torch.cat([features.global_embeds.unsqueeze(1), regions], dim=1)
        regions = F.normalize(regions, dim=-1)
        logits = []
        for chunk in chunks(F.normalize(label_embeds, dim=-1), 3 * regions.shape[0] * regions.shape[1]):
            cosines = torch.einsum("brd,lkd->bklr", regions, chunk)
            weights = self.region_weights(cosines[:, 1])
            logits.append(self.scale * (weights.unsqueeze(1) * cosines).sum(dim=-1))
        return torch.cat(logits, dim=2)

    def region_weights(self, cosines: Tensor) -> Tensor:
        """Return the weights `[B, L, R]` of regions by their cosines `[B, L, R]` with the present embeddings."""
        return (cosines / self.temperature).softmax(dim=-1)
