"""The best patch of each label, where labels compete for each patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, check_several
from ovml.heads.chunks import chunks
from ovml.utils.errors import check_positive
from ovml.vocabulary import check_names


class PatchSoftmaxHead(Head):
    """`s_l = max_p softmax_l(scale cos(x_p, t_l))`: how much the best patch shows the label rather than the others.

    The softmax runs over the labels that are scored and over `background` names, such as "sky", which take the patches
    that show no label. It is the first step of TagCLIP's and PIAA's published codes, and needs patches that say what is
    where: give the model a patch source, such as `ovml.encoders.sources.MaskCLIP`.

    Args:
        scale: Factor of the cosines: 100 in CLIPs of OpenAI. `None`: what the model's CLIP learned.
        background: Names that are no labels.

    Raises:
        UserError: An argument is out of range, or the names are no proper list.

    Example:
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> PatchSoftmaxHead()(features, torch.randn(5, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(self, scale: float | None = 100.0, background: Sequence[str] = ()) -> None:
        super().__init__()
        check_positive(self, scale=scale)
        self.scale = scale
        self._factor = 100.0 if scale is None else scale
        self.background = check_names(background, where="PatchSoftmaxHead: background") if background else ()

    def set_logit_scale(self, scale: float) -> None:
        """Take the CLIP's factor of the cosines, unless one was given."""
        if self.scale is None:
            self._factor = scale

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Scores `[B, L]` from 0 to 1."""
        check_several(label_embeds)
        patches, labels = F.normalize(features.patch_embeds, dim=-1), F.normalize(label_embeds, dim=-1)
        parts = chunks(patches, patches.shape[1] * labels.shape[0])
        return torch.cat([(self._factor * part @ labels.T).softmax(dim=-1).amax(dim=1) for part in parts])
