"""ML-Decoder's decoder: labels as queries of a transformer decoder with weights of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, has_weights, not_bound
from ovml.heads.chunks import chunks
from ovml.utils.errors import UserError, check_at_most, check_positive, check_share


class MLDecoderHead(Head):
    r"""Transformer decoder without self-attention (ML-Decoder; Ridnik et al., WACV 2023, arXiv 2111.12933).

    The form that scores unseen labels, as in the published code (Alibaba-MIIL/ML_Decoder 8a9e984, read, not copied).
    With `n` for layer norm and `d` for dropout:

    - memory `m_p = relu(A x_p)` of the patches, query `q = relu(B y_l)` of a label;
    - `z = n(q + d(q))`, then `z = n(z + d(Attention(z; m)))`, then `z = n(z + d(W_2 d(relu(W_1 z))))`;
    - logit `<w, z> + b`.

    All labels share all weights and do not attend to each other. All weights start at random, so an untrained head
    knows nothing of CLIP: `QueryHead` is the variant that starts as CLIP itself.

    As published for NUS-WIDE there is one layer, and the loss is `AsymmetricLoss` with its defaults. The published
    labels are word vectors of 300 numbers and the published tower is a TResNet-L of 448 pixels that learns as a whole;
    here they are the label and patch embeddings of CLIP, not L2-normalised.

    Args:
        decoder_dim: Width of the decoder.
        num_heads: Number of attention heads; must divide the width.
        hidden_dim: Width of the feed-forward network.
        dropout: Share of values that are dropped in training.

    Raises:
        UserError: An argument is out of range, or `bind` was not called.

    Example:
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> head = MLDecoderHead(decoder_dim=16).bind(embed_dim=8)
        >>> head(features, torch.randn(5, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self, decoder_dim: int = 768, num_heads: int = 8, hidden_dim: int = 2048, dropout: float = 0.1
    ) -> None:
        super().__init__()
        check_positive(self, decoder_dim=decoder_dim, num_heads=num_heads, hidden_dim=hidden_dim)
        check_at_most(self, 2**16, decoder_dim=decoder_dim, hidden_dim=hidden_dim)
        check_share(self, dropout=dropout)
        if decoder_dim % num_heads:
            raise UserError(f"MLDecoderHead: num_heads must divide decoder_dim {decoder_dim}; got {num_heads}")
        self.decoder_dim = decoder_dim
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.dropout = dropout
        self.patch_map: nn.Linear | None = None

    def bind(self, embed_dim: int) -> MLDecoderHead:
        """Create the parameters; existing ones of the same width are kept.

        Args:
            embed_dim: Embedding width D.

        Raises:
            UserError: The head already has another width.
        """
        if has_weights(self, None if self.patch_map is None else self.patch_map.in_features, embed_dim):
            return self
        self.patch_map, self.label_map = (nn.Linear(embed_dim, self.decoder_dim) for _ in range(2))
        self.layer = DecoderLayer(self.decoder_dim, self.num_heads, self.hidden_dim, self.dropout)
        self.weight = nn.Parameter(torch.empty(self.decoder_dim, 1))
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.xavier_normal_(self.weight)
        return self

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return logits `[B, L]`."""
        if self.patch_map is None:
            raise not_bound(self)
        memory = self.patch_map(features.patch_embeds).relu()
        numbers = memory.shape[0] * (self.num_heads * memory.shape[1] + 4 * self.decoder_dim + self.hidden_dim)
        logits = []
        for chunk in chunks(label_embeds, numbers):
            queries = self.label_map(chunk).relu().expand(memory.shape[0], -1, -1)
            logits.append(self.layer(queries, memory) @ self.weight + self.bias)
        return torch.cat(logits, dim=1).squeeze(-1)


class DecoderLayer(nn.Module):
    """The layer of `MLDecoderHead`: attention to the memory and a feed-forward network, each followed by a norm.

    Args:
        width: Width of queries and memory.
        num_heads: Number of attention heads.
        hidden_dim: Width of the feed-forward network.
        dropout: Share of values that are dropped in training.
    """

    def __init__(self, width: int, num_heads: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.query_norm, self.attention_norm, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, num_heads, dropout, batch_first=True)
        self.hidden = nn.Linear(width, hidden_dim)
        self.back = nn.Linear(hidden_dim, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Return states `[B, l, W]` of queries `[B, l, W]` and memory `[B, P, W]`."""
        state = self.query_norm(queries + self.dropout(queries))
        found, _ = self.attention(state, memory, memory, need_weights=False)
        state = self.attention_norm(state + self.dropout(found))
        changed = self.back(self.dropout(self.hidden(state).relu()))
        result: Tensor = self.norm(state + self.dropout(changed))
        return result
