"""Labels as queries into the patches."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head
from ovml.heads.chunks import chunks
from ovml.heads.spatial_softmax import check_positive, check_share, with_global
from ovml.utils.errors import UserError


class QueryHead(Head):
    r"""Each label asks the patches for what speaks for it (ML-Decoder, Ridnik et al., WACV 2023, arXiv 2111.12933).

    A transformer decoder whose queries are the label embeddings, as in ML-Decoder's zero-shot variant: no attention
    between labels and all weights shared by them, so any labels can be scored and a label's score depends on no other.
    That what the picture gives is shared by all labels, which select from it, is the idea of query-based knowledge
    sharing too (QKS, Zhu et al., arXiv 2401.01181); QKS puts learned tokens between patches and labels, which are not
    here.

    With patches `x_p` and a label `q` of length one, a state `z_0 = 0`, for each layer `k`:

    - `z = z + O Attention(query W_q (q + z), keys W_k x_p, values W_v x_p)`, in each of `num_heads` slices of the width
      with weights `softmax_p(num_heads / temperature * <query, key>)`;
    - `z = z + W_2 gelu(W_1 LayerNorm(z))`;

    and the score is `scale * <W z, q>`, the magnitude of `z` taking part as QKS has it. With `global_weight` w it is
    `scale * ((1 - w) * <W z, q> + w * cos(global, q))`.

    All square maps begin as the identity, `O` of later layers and `W_2` as zero, so before any training the score is
    that of CLIP's patches, pooled by attention: with one head `SpatialSoftmaxHead`'s, number for number. The identity
    is added rather than learned (`W = 1 + D`): weight decay draws towards CLIP, not towards zero.

    Args:
        num_heads: Slices of the width; must divide it.
        hidden_dim: Width of the feed-forward branch. Default: four times the embeddings' width.
        num_layers: Layers of attention and feed-forward.
        temperature: Of the attention at the start.
        scale: Factor of the scores.
        global_weight: Share of the global stream, 0 to 1.

    Raises:
        UserError: An argument is out of its range, the width does not fit, or `bind` was not called.

    Example:
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> head = QueryHead(num_heads=2).bind(embed_dim=8)
        >>> head(features, torch.randn(5, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        num_heads: int = 1,
        hidden_dim: int | None = None,
        num_layers: int = 1,
        temperature: float = 0.05,
        scale: float = 1.0,
        global_weight: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(self, num_heads=num_heads, num_layers=num_layers, temperature=temperature, scale=scale)
        check_positive(self, **({} if hidden_dim is None else {"hidden_dim": hidden_dim}))
        check_share(self, global_weight=global_weight)
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.temperature = temperature
        self.scale = scale
        self.global_weight = global_weight
        self.layers = nn.ModuleList()
        self.projection: NearIdentity | None = None

    def bind(self, embed_dim: int) -> QueryHead:
        """Make the parameters; where they are there in this width, they stay.

        Args:
            embed_dim: The width D of the embeddings.

        Raises:
            UserError: `num_heads` does not divide it, or the head has another width.
        """
        if self.projection is not None:
            width = len(self.projection.change)
            if width != embed_dim:
                raise UserError(f"QueryHead: has width {width} and cannot take {embed_dim}; make a new one")
            return self
        if embed_dim % self.num_heads:
            raise UserError(f"QueryHead: num_heads must divide the embeddings' width {embed_dim}; got {self.num_heads}")
        hidden_dim = 4 * embed_dim if self.hidden_dim is None else self.hidden_dim
        for index in range(self.num_layers):
            layer = QueryLayer(embed_dim, self.num_heads, hidden_dim, self.temperature, first=index == 0)
            self.layers.append(layer)
        self.projection = NearIdentity(embed_dim)
        return self

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return scores `[B, L]`."""
        if self.projection is None:
            raise UserError("QueryHead: has no weights yet; call head.bind(embed_dim) first, a classifier does")
        patches, labels = F.normalize(features.patch_embeds, dim=-1), F.normalize(label_embeds, dim=-1)
        layers = cast("list[QueryLayer]", list(self.layers))
        keys_values = [layer.keys_values(patches) for layer in layers]
        numbers = patches.shape[0] * (self.num_heads * patches.shape[1] + layers[0].numbers_per_query)
        scores = []
        for chunk in chunks(labels, numbers):
            state = chunk.new_zeros(1, 1, 1)
            for layer, (keys, values) in zip(layers, keys_values, strict=True):
                state = layer(chunk, state, keys, values)
            scores.append((self.projection(state) * chunk).sum(dim=-1))
        return self.scale * with_global(torch.cat(scores, dim=1), features, labels, self.global_weight)


class QueryLayer(nn.Module):
    """Attention of labels to patches and a feed-forward branch, which change nothing but by their first attention.

    Args:
        embed_dim: The width D.
        num_heads: Slices of it.
        hidden_dim: Width of the feed-forward branch.
        temperature: Of the attention.
        first: Whether its attention counts from the start; the output of others begins as zero.
    """

    def __init__(self, embed_dim: int, num_heads: int, hidden_dim: int, temperature: float, first: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sharpness = num_heads / temperature
        self.numbers_per_query = 4 * embed_dim + hidden_dim
        self.query, self.key, self.value = (NearIdentity(embed_dim) for _ in range(3))
        self.output = NearIdentity(embed_dim) if first else _zero(nn.Linear(embed_dim, embed_dim, bias=False))
        self.norm = nn.LayerNorm(embed_dim)
        self.hidden = nn.Linear(embed_dim, hidden_dim)
        self.back = _zero(nn.Linear(hidden_dim, embed_dim))

    def keys_values(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, H, P, D / H]` of patches `[B, P, D]`."""
        return self._split(self.key(patches)), self._split(self.value(patches))

    def forward(self, labels: Tensor, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the next state `[B, l, D]`.

        Args:
            labels: `[l, D]`.
            state: `[B, l, D]`, or what broadcasts to it.
            keys: `[B, H, P, D / H]`.
            values: As the keys.
        """
        # The first layer asks the same of all images.
        asked = self._split(self.query(labels + state)).expand(keys.shape[0], -1, -1, -1)
        found = F.scaled_dot_product_attention(asked, keys, values, scale=self.sharpness)
        state = state + self.output(found.transpose(1, 2).flatten(2))
        changed: Tensor = state + self.back(F.gelu(self.hidden(self.norm(state))))
        return changed

    def _split(self, rows: Tensor) -> Tensor:
        """Cut the width: `[B, n, D]` to `[B, H, n, D / H]`."""
        shape = (*rows.shape[:-1], self.num_heads, rows.shape[-1] // self.num_heads)
        return rows.reshape(shape).transpose(1, 2)


class NearIdentity(nn.Module):
    """The linear map `1 + D` of a width to itself; its change `D` learns, and begins as zero.

    Args:
        embed_dim: The width.

    Example:
        >>> NearIdentity(2)(torch.tensor([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(embed_dim, embed_dim))

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows `[..., D]`."""
        mapped: Tensor = rows + F.linear(rows, self.change)
        return mapped


def _zero(layer: nn.Linear) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
