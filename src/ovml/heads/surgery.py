"""CLIP Surgery's feature surgery on the scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, check_several


class SurgeryHead(Head):
    """Cosines less what all labels have in common, as CLIP Surgery's code does it.

    With cosines `c` of the global embedding and weights `w = L softmax(2 c)`: `s_l = w_l c_l - mean_l'(w_l' c_l')`. The
    published code subtracts the mean over the labels channel by channel, which is the same and builds `[P, L, D]`. The
    order of an image's labels stays that of cosines above -0.5; mAP moves.

    Example:
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> SurgeryHead()(features, torch.randn(5, 8)).mean(dim=1).abs().max() < 1e-6
        tensor(True)
    """

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Scores `[B, L]`, whose mean over the labels is 0."""
        return self.similarities(features, label_embeds)[:, 0]

    def similarities(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Scores of the global embedding, then of each patch, `[B, 1+P, L]`."""
        check_several(label_embeds)
        labels = F.normalize(label_embeds, dim=-1)
        whole = F.normalize(features.global_embeds, dim=-1).unsqueeze(1) @ labels.T
        patches = F.normalize(features.patch_embeds, dim=-1) @ labels.T
        weights = labels.shape[0] * (2 * whole).softmax(dim=-1)
        weighted = [weights * cosines for cosines in (whole, patches)]
        whole, patches = (x - x.mean(dim=-1, keepdim=True) for x in weighted)
        return torch.cat([whole, patches], dim=1)
