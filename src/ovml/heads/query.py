"""A transformer decoder with labels as queries and patches as keys and values."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, has_weights, not_bound
from ovml.heads.chunks import chunks
from ovml.heads.spatial_softmax import with_global
from ovml.utils.errors import UserError, check_at_most, check_positive, check_share


class QueryHead(Head):
    r"""Transformer decoder with label embeddings as queries that starts as CLIP itself; a variant of two methods.

    As in ML-Decoder's zero-shot form (Ridnik et al., WACV 2023, arXiv 2111.12933; `MLDecoderHead`), labels do not
    attend to each other and share all weights, so any label can be scored and a label's score depends on no other.
    Otherwise than there, patches and labels are L2-normalised, matrices start as the identity or zero instead of at
    random, the state starts as zero, there is no norm after a sum, and the score is a dot product with the label. As in
    query-based knowledge sharing (QKS; Zhu et al., arXiv 2401.01181; `QKSHead`) the length of the state counts; the
    learned queries that all labels share there are not used here.

    With L2-normalised patches `x_p` and label `q`, and a state that starts as `z = 0`, each layer computes

    - `z = z + O Attention(query W_q (q + z), keys W_k x_p, values W_v x_p)`, where each of `num_heads` heads has
      weights `softmax_p(num_heads / temperature * <query, key>)`;
    - `z = z + W_2 gelu(W_1 LayerNorm(z))`.

    The score is `scale * <W z, q>`; as in QKS, `z` is not normalised. With `global_weight` w it is
    `scale * ((1 - w) * <W z, q> + w * cos(global, q))`.

    Square maps start as the identity; `W_2`, and `O` of all layers but the first, start as zero. An untrained head
    with `num_heads=1` therefore equals `SpatialSoftmaxHead`. The identity is added to a trained matrix (`W = 1 + D`),
    so weight decay pulls the head towards CLIP instead of zero.

    Args:
        num_heads: Number of attention heads; must divide the embedding width.
        hidden_dim: Width of the feed-forward network. Default: four times the embedding width.
        num_layers: Number of layers.
        temperature: Initial temperature of the attention.
        scale: Factor of the scores.
        global_weight: Weight of the global stream, 0 to 1.

    Raises:
        UserError: An argument is out of range, the width does not fit, or `bind` was not called.

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
        check_positive(self, hidden_dim=hidden_dim)
        check_at_most(self, 2**16, num_layers=num_layers, hidden_dim=hidden_dim)
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
        """Create the parameters; existing ones of the same width are kept.

        Args:
            embed_dim: Embedding width D.

        Raises:
            UserError: `num_heads` does not divide the width, or the head already has another width.
        """
        if has_weights(self, None if self.projection is None else len(self.projection.change), embed_dim):
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
            raise not_bound(self)
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
    """One layer of `QueryHead`: attention of labels to patches, then a feed-forward network.

    Args:
        embed_dim: Embedding width D.
        num_heads: Number of attention heads.
        hidden_dim: Width of the feed-forward network.
        temperature: Initial temperature of the attention.
        first: Whether this is the first layer. Output maps of other layers start as zero.
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
        """Return keys and values `[B, H, P, D / H]` of patches `[B, P, D]`."""
        return self._split(self.key(patches)), self._split(self.value(patches))

    def forward(self, labels: Tensor, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the next state `[B, l, D]`.

        Args:
            labels: `[l, D]`.
            state: `[B, l, D]`, or broadcastable to it.
            keys: `[B, H, P, D / H]`.
            values: `[B, H, P, D / H]`.
        """
        # In the first layer all images share the queries.
        asked = self._split(self.query(labels + state)).expand(keys.shape[0], -1, -1, -1)
        found = F.scaled_dot_product_attention(asked, keys, values, scale=self.sharpness)
        state = state + self.output(found.transpose(1, 2).flatten(2))
        changed: Tensor = state + self.back(F.gelu(self.hidden(self.norm(state))))
        return changed

    def _split(self, rows: Tensor) -> Tensor:
        """Split the width into heads: `[B, n, D]` to `[B, H, n, D / H]`."""
        shape = (*rows.shape[:-1], self.num_heads, rows.shape[-1] // self.num_heads)
        return rows.reshape(shape).transpose(1, 2)


class NearIdentity(nn.Module):
    """Linear map `1 + D` with a trained square matrix `D` that starts as zero.

    Args:
        embed_dim: Width of input and output.

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
