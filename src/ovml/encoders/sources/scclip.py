"""SC-CLIP's patches: outliers replaced, patches averaged with similar ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.encoders.sources.base import PatchSource, self_similarity
from ovml.utils.errors import UserError, check_positive, check_share, check_whole


class SCCLIP(PatchSource):
    """Outlier patches replaced by their neighbours, then patches averaged with similar ones, as SC-CLIP's code does it.

    Images do not mix; in the copy of that code in PIAA's those of a batch do. With hidden states `h_i` of `N` blocks:

    1. Patches of `h_{N-1}` whose local outlier factor is above the 0.95 quantile become the mean of their neighbours on
       the grid that are none. `M` holds the cosines of the patches of `h_{N-3}` with the same places replaced.
    2. The last block's attention with weights half from `M`, half from keys, plus 0.3 of the class token; without
       residual and feed-forward layer; averaged by the cosines of `h_4`.
    3. The same of the sum of `h_4` to `h_{N-2}`, added.

    An average leaves out patches with a cosine below `similar`.

    Args:
        similar: Least cosine of patches that are averaged.
        class_share: Weight of the class token.
        neighbours: Neighbours of the local outlier factor.

    Raises:
        UserError: An argument is out of range; or the tower has fewer than 6 blocks, or too few patches.

    Example:
        >>> SCCLIP().first_block(12)
        4
    """

    def __init__(self, similar: float = 0.4, class_share: float = 0.3, neighbours: int = 30) -> None:
        check_positive(self, similar=similar)
        check_share(self, class_share=class_share)
        check_whole(self, 1, neighbours=neighbours)
        self.similar = similar
        self.class_share = class_share
        self.neighbours = neighbours

    def first_block(self, num_layers: int) -> int:
        """The fifth block, whose input `h_4` is the first that is read; that of `h_{N-3}` in short towers.

        Raises:
            UserError: The tower has fewer than 6 blocks.
        """
        if num_layers < 6:
            raise UserError(f"SCCLIP: needs a tower of at least 6 blocks; this one has {num_layers}")
        return min(4, num_layers - 3)

    def patches(self, states: Sequence[Tensor], layers: Sequence[Any]) -> Tensor:
        """The averaged patches."""
        count = states[-1].shape[1] - 1
        if count <= self.neighbours:
            raise UserError(f"SCCLIP: neighbours must be less than the tower's {count} patches; got {self.neighbours}")
        layer, whole = layers[-1], states[-2]
        outlying = outliers(whole[:, 1:], self.neighbours)
        late = replaced(whole[:, 1:], outlying)
        similar = _cosines(replaced(states[-4][:, 1:], outlying))
        early = _cosines(states[4][:, 1:])
        attended = self._attend(layer, _averaged(late, similar, self.similar), whole[:, :1], similar)
        several = torch.stack(list(states[4 : len(layers) - 1])).sum(dim=0)
        added = self._attend(layer, several[:, 1:], several[:, :1], similar)
        return sum(_averaged(x, early, self.similar) for x in (attended, added))  # type: ignore[return-value]

    def _attend(self, layer: Any, patches: Tensor, class_token: Tensor, similar: Tensor) -> Tensor:
        weights = 3 * (similar - similar.mean(dim=(-2, -1), keepdim=True))
        weights = torch.softmax(weights.masked_fill(weights < 0, -torch.inf), dim=-1)
        attention = layer.self_attn
        values = attention.v_proj(layer.layer_norm1(patches)).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        both = (weights.unsqueeze(1) + self_similarity(layer, patches, "k")) / 2
        mixed: Tensor = attention.out_proj((both @ values).transpose(1, 2).flatten(2))
        return mixed + self.class_share * class_token


def outlier_factors(patches: Tensor, neighbours: int) -> Tensor:
    """Local outlier factor of each patch `[B, P]`: its neighbours' distances to their own, relative to its.

    Args:
        patches: `[B, P, W]`.
        neighbours: Number of nearest patches that count.
    """
    distances = torch.cdist(patches, patches).square()
    nearest = distances.topk(neighbours + 1, largest=False)
    reach, near = nearest.values[..., -1], nearest.indices[..., 1:]
    return (reach.unsqueeze(-1) / reach.unsqueeze(1).expand_as(distances).gather(-1, near)).mean(dim=-1)


def outliers(patches: Tensor, neighbours: int) -> Tensor:
    """Which patches `[B, P]` have a factor above the 0.95 quantile of their image's."""
    factors = outlier_factors(patches, neighbours)
    return factors > factors.quantile(0.95, dim=-1, keepdim=True)


def replaced(patches: Tensor, outlying: Tensor) -> Tensor:
    """Each outlier as the mean of those of its eight neighbours on the grid that are none; unchanged without one.

    Args:
        patches: `[B, P, W]`, row-major on a square grid.
        outlying: `[B, P]`, bool.
    """
    side = round(patches.shape[1] ** 0.5)
    kept = (~outlying).to(patches.dtype).unsqueeze(-1)
    maps = torch.cat([patches * kept, kept], dim=-1).transpose(1, 2).unflatten(-1, (side, side))
    around = F.avg_pool2d(maps, 3, stride=1, padding=1, divisor_override=1).flatten(2).transpose(1, 2)
    total, number = around[..., :-1], around[..., -1:]  # an outlier itself counts nothing
    return torch.where(outlying.unsqueeze(-1) & (number > 0), total / number.clamp(min=1), patches)


def _cosines(patches: Tensor) -> Tensor:
    unit = F.normalize(patches, dim=-1)
    return unit @ unit.transpose(-1, -2)


def _averaged(patches: Tensor, cosines: Tensor, similar: float) -> Tensor:
    weights = cosines.masked_fill(cosines < similar, 0)
    return (weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)) @ patches
