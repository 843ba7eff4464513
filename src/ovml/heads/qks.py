"""QKS's head: learned queries that all labels share read the patches; each label takes the best of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, has_weights, not_bound
from ovml.heads.chunks import chunks
from ovml.utils.errors import UserError, check_at_most, check_positive, check_share


class QKSHead(Head):
    r"""Query-based knowledge sharing (QKS; Zhu et al., arXiv 2401.01181).

    `num_queries` learned queries pass through a transformer whose layers attend to each other and to the tokens of the
    image, as in BERT with cross-attention (BLIP-2's Q-Former). A label's logit is the greatest dot product of its
    embedding with the projected queries: `max_q <W z_q, y_l>`. Labels share the queries, and none is normalised.

    It is as in the published code (jasonseu/QKS d06ead7, read, not copied), but for two points: the image's tokens are
    CLIP's global and patch embeddings, after its projection instead of before it (512 numbers instead of 768 with
    ViT-B/16), and `W` starts at random instead of as CLIP's projection. `QueryHead` is a variant in which labels
    themselves are the queries.

    Args:
        num_queries: Number of queries: 12 for NUS-WIDE, 22 for Open Images.
        num_layers: Number of layers: 7 for NUS-WIDE, 8 for Open Images.
        width: Width of the queries; that of BERT by default.
        num_heads: Number of attention heads; must divide the width.
        hidden_dim: Width of the feed-forward networks.
        dropout: Share of values that are dropped in training.

    Raises:
        UserError: An argument is out of range, or `bind` was not called.

    Example:
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> head = QKSHead(num_queries=3, num_layers=1, width=16, num_heads=2, hidden_dim=8).bind(embed_dim=8)
        >>> head(features, torch.randn(5, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        num_queries: int = 12,
        num_layers: int = 7,
        width: int = 768,
        num_heads: int = 12,
        hidden_dim: int = 3072,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_positive(self, num_queries=num_queries, num_layers=num_layers, width=width, num_heads=num_heads)
        check_positive(self, hidden_dim=hidden_dim)
        check_at_most(self, 2**16, num_queries=num_queries, num_layers=num_layers, width=width, hidden_dim=hidden_dim)
        check_share(self, dropout=dropout)
        if width % num_heads:
            raise UserError(f"QKSHead: num_heads must divide width {width}; got {num_heads}")
        self.num_queries = num_queries
        self.num_layers = num_layers
        self.width = width
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.dropout = dropout
        self.projection: nn.Linear | None = None

    def bind(self, embed_dim: int) -> QKSHead:
        """Create the parameters; existing ones of the same width are kept.

        Args:
            embed_dim: Embedding width D.

        Raises:
            UserError: The head already has another width.
        """
        if has_weights(self, None if self.projection is None else self.projection.out_features, embed_dim):
            return self
        self.queries = nn.Parameter(0.02 * torch.randn(self.num_queries, self.width))
        self.norm = nn.LayerNorm(self.width, eps=1e-12)
        self.layers = nn.ModuleList(
            SharedQueryLayer(self.width, embed_dim, self.num_heads, self.hidden_dim, self.dropout)
            for _ in range(self.num_layers)
        )
        self.projection = nn.Linear(self.width, embed_dim, bias=False)
        self.layers.apply(_start_as_bert)
        return self

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Return logits `[B, L]`."""
        if self.projection is None:
            raise not_bound(self)
        tokens = torch.cat([features.global_embeds.unsqueeze(1), features.patch_embeds], dim=1)
        state = F.dropout(self.norm(self.queries), self.dropout, self.training).expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            state = layer(state, tokens)
        found = self.projection(state)
        numbers = tokens.shape[0] * self.num_queries
        return torch.cat([(found @ chunk.T).amax(dim=1) for chunk in chunks(label_embeds, numbers)], dim=1)


class SharedQueryLayer(nn.Module):
    """One layer of `QKSHead`: attention of the queries to each other and to the tokens, then a feed-forward network.

    Args:
        width: Width of the queries.
        token_dim: Width of the tokens.
        num_heads: Number of attention heads.
        hidden_dim: Width of the feed-forward network.
        dropout: Share of values that are dropped in training.
    """

    def __init__(self, width: int, token_dim: int, num_heads: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(width, num_heads, dropout, batch_first=True)
        self.cross = nn.MultiheadAttention(width, num_heads, dropout, kdim=token_dim, vdim=token_dim, batch_first=True)
        self.hidden = nn.Linear(width, hidden_dim)
        self.back = nn.Linear(hidden_dim, width)
        self.own_norm, self.cross_norm, self.norm = (nn.LayerNorm(width, eps=1e-12) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: Tensor, tokens: Tensor) -> Tensor:
        """Return the next state `[B, Q, W]` of a state `[B, Q, W]` and tokens `[B, P, D]`."""
        found, _ = self.own(state, state, state, need_weights=False)
        state = self.own_norm(state + self.dropout(found))
        found, _ = self.cross(state, tokens, tokens, need_weights=False)
        state = self.cross_norm(state + self.dropout(found))
        result: Tensor = self.norm(state + self.dropout(self.back(F.gelu(self.hidden(state)))))
        return result


def _start_as_bert(module: nn.Module) -> None:
    """Start matrices from a normal distribution with standard deviation 0.02 and offsets at 0, as BERT."""
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
