"""RAM's ladder: patch embeddings that are learned on a path beside the vision tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders.adapters.base import TowerAdapter
from ovml.encoders.clip import ImageEncoder, ImageTail
from ovml.utils.errors import UserError


class Ladder(TowerAdapter):
    r"""A path of the patches' own beside the last blocks (RAM; Tan et al., CVPR 2025, arXiv 2503.15337).

    It is the paper's ladder local adapter. Let `x_i [1+P, W]` be the output of block `i` of `N`. The local path
    `z [P, W]` begins as the patches of `x_{N-num_layers}`; in each of the last `num_layers` blocks

        z = z + VV_i(x_{i-1}) + A_i(x_i)        A_i: `LocalAdapter`, in the last `num_adapters` blocks
        VV_i(x) = W_o softmax(v v^T / sqrt(d)) v + b,     v = W_v LayerNorm(x) + b_v of the block, in each head

    Patches attend by values instead of queries and keys, to the class token too, and no feed-forward layer follows.
    The patch embeddings are `z` after post-layernorm and projection; the global embedding stays the original's, to the
    last bit. No gradient passes through a block. An untrained adapter gives zero.

    The equations were read off the published code, not the paper, whose text was not at hand; the adapter's off a
    public file whose class and arguments are the code's, found without its repository. As published: the path over all
    12 blocks, adapters in three, and a teacher whose patch embeddings come from the untrained path. Different from it:

    - The published adapters also attend, without weights, to the label embeddings. Here the features of an image do not
      depend on labels, so that they can be kept, exported, and scored against others.
    - `num_tokens` is 8 there: tokens in the adapted blocks, as `VisualPrompts` has, which `VV_i` does not see. They
      change the global embedding, and a gradient then passes through these blocks. Default: none.

    Args:
        num_layers: Number of last blocks that the local path runs over; RAM uses the tower's depth.
        num_adapters: Number of last blocks that have an adapter.
        num_tokens: Tokens that each of these blocks reads.
        hidden_dim: Channels of an adapter. Default: the width of the label embeddings, as published.
        kernel_size: Kernel size of its convolutions; odd.

    Raises:
        UserError: An argument is out of its range; or, in `attach`, the tower is too short or not a CLIP's.
    """

    added = frozenset({"local_adapter", "adapt_tokens"})

    def __init__(
        self,
        num_layers: int = 3,
        num_adapters: int = 3,
        num_tokens: int = 0,
        hidden_dim: int | None = None,
        kernel_size: int = 3,
    ) -> None:
        if not 1 <= num_adapters <= num_layers or num_tokens < 0:
            raise UserError(
                f"Ladder: num_adapters must be from 1 to num_layers, num_tokens not negative; got "
                f"num_adapters={num_adapters}, num_layers={num_layers}, num_tokens={num_tokens}"
            )
        if (hidden_dim is not None and hidden_dim < 1) or kernel_size < 1 or kernel_size % 2 == 0:
            raise UserError(
                f"Ladder: hidden_dim must be at least 1, kernel_size odd; got hidden_dim={hidden_dim}, "
                f"kernel_size={kernel_size}"
            )
        self.num_layers = num_layers
        self.num_adapters = num_adapters
        self.num_tokens = num_tokens
        self.hidden_dim = hidden_dim
        self.kernel_size = kernel_size

    def attach(self, encoder: ImageEncoder, embed_dim: int) -> None:
        """Lay the path beside the last blocks, with adapters."""
        if encoder.model_type != "clip":
            raise UserError(
                f"Ladder: needs a CLIP, whose class token has a path of its own; this tower is {encoder.model_type}; "
                "use LoRAStage or VisualPromptStage"
            )
        layers, config = encoder.vision_model.encoder.layers, encoder.vision_model.config
        encoder.tail(self.num_layers)  # says where the tower is too short
        lay_ladder(layers, self.num_layers)
        like = next(layers.parameters())
        for block in layers[len(layers) - self.num_adapters :]:
            width, grid = config.hidden_size, config.image_size // config.patch_size
            block.local_adapter = LocalAdapter(width, self.hidden_dim or embed_dim, grid, self.kernel_size).to(like)
            if self.num_tokens:
                block.adapt_tokens = nn.Parameter(0.02 * torch.randn(self.num_tokens, width).to(like))

    def attach_to_teacher(self, teacher: ImageTail) -> None:
        """Lay the path, without adapters, beside the teacher's blocks."""
        if len(teacher.layers) >= self.num_layers:  # else no stage trains the ladder, and nothing is taught
            lay_ladder(teacher.layers, self.num_layers)

    def parameters(self, encoder: ImageEncoder) -> list[nn.Parameter]:
        """The adapters and their tokens."""
        blocks = encoder.tail(self.num_adapters).layers
        return [parameter for name, parameter in blocks.named_parameters() if ".base_layer." not in name]


class LocalAdapter(nn.Module):
    r"""What RAM's ladder adds to the patches of a block: a close and a wider look, weighed place by place.

    On the grid of the patches `x`, with `[c; d]` for channels put together and `*` for a product with a map:

        c = gelu(LayerNorm(W_c x))                       each patch by itself
        d = gelu(LayerNorm(conv_d x))                    with its neighbours
        [m_c; m_d] = sigmoid(conv [mean_h [c; d]; max_h [c; d]])     two maps
        A(x) = W_o (m_c * c + m_d * d)

    The normalisation is over the channels of each patch, in the place of the code's batch norm: what a picture gives
    does not depend on its batch. `W_o` begins as zero.

    Args:
        width: Channels `W` of the block.
        hidden_dim: Channels `h` within.
        grid: Patches along a side.
        kernel_size: Of both convolutions.

    Example:
        >>> adapter = LocalAdapter(width=8, hidden_dim=4, grid=3)
        >>> adapter(torch.randn(2, 9, 8)).equal(torch.zeros(2, 9, 8))
        True
    """

    def __init__(self, width: int, hidden_dim: int, grid: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.grid = grid
        self.close = nn.Linear(width, hidden_dim, bias=False)
        self.close_norm = nn.LayerNorm(hidden_dim)
        self.wide = nn.Conv2d(width, hidden_dim, kernel_size, padding=kernel_size // 2, bias=False)
        self.wide_norm = nn.LayerNorm(hidden_dim)
        self.maps = nn.Conv2d(2, 2, kernel_size, padding=kernel_size // 2, bias=False)
        self.out = nn.Linear(hidden_dim, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, patches: Tensor) -> Tensor:
        """What is added to the local path of patches `[B, P, W]`; of the same shape."""
        close = F.gelu(self.close_norm(self.close(patches)))
        wide = F.gelu(self.wide_norm(self._over_grid(self.wide, patches)))
        both = torch.cat([close, wide], dim=-1)
        maps = self._over_grid(self.maps, torch.stack([both.mean(dim=-1), both.amax(dim=-1)], dim=-1)).sigmoid()
        added: Tensor = self.out(maps[..., :1] * close + maps[..., 1:] * wide)
        return added

    def _over_grid(self, convolution: nn.Module, patches: Tensor) -> Tensor:
        """Convolve `[B, P, C]` as pictures of `grid * grid`."""
        picture = patches.transpose(1, 2).reshape(patches.shape[0], -1, self.grid, self.grid)
        out: Tensor = convolution(picture).flatten(2).transpose(1, 2)
        return out


class LadderBlock(nn.Module):
    """A block with the patches' own path beside it: see `LadderStage`.

    From the first to the last block of the path the hidden states are the tower's and, behind them, the path's.

    Args:
        base_layer: The block.
        first: Whether the path begins here.
        last: Whether it ends here, with the tower's class token and the path's patches.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip
        >>> block = load_clip("ovml-demo").vision_model.encoder.layers[0]
        >>> states = torch.zeros(2, 1 + 36, 128)
        >>> LadderBlock(block, first=True, last=False)(states).shape
        torch.Size([2, 73, 128])
    """

    local_adapter: LocalAdapter | None
    adapt_tokens: nn.Parameter | None

    def __init__(self, base_layer: nn.Module, first: bool, last: bool) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.first = first
        self.last = last
        self.local_adapter = None
        self.adapt_tokens = None

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Run hidden states `[B, 1+P, W]`, behind them `[P, W]` of the path, through the block and along the path."""
        num_patches = hidden_states.shape[1] - 1 if self.first else hidden_states.shape[1] // 2
        whole = hidden_states[:, : 1 + num_patches]
        local = hidden_states[:, -num_patches:]
        # Without tokens nothing on the tower's own path learns, here or in a block before.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.adapt_tokens is not None):
            attended = self._attend_by_values(whole)
            whole = self._run_block(whole, attention_mask)
        local = local + attended
        if self.local_adapter is not None:
            local = local + self.local_adapter(whole[:, 1:])
        return torch.cat([whole[:, :1] if self.last else whole, local], dim=1)

    def _attend_by_values(self, hidden_states: Tensor) -> Tensor:
        """What the patches of `[B, 1+P, W]` get from all tokens: `[B, P, W]`."""
        block: Any = self.base_layer
        attention = block.self_attn
        values = attention.v_proj(block.layer_norm1(hidden_states))
        values = values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(values[:, :, 1:], values, values, scale=attention.scale)
        attended: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return attended

    def _run_block(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        if self.adapt_tokens is None:
            out: Tensor = self.base_layer(hidden_states, attention_mask)
            return out
        tokens = self.adapt_tokens.to(hidden_states.dtype).expand(hidden_states.shape[0], -1, -1)
        out = self.base_layer(torch.cat([hidden_states, tokens], dim=1), attention_mask)
        return out[:, : hidden_states.shape[1]]


def lay_ladder(layers: nn.ModuleList, num_layers: int) -> None:
    """Lay the patches' own path beside the last `num_layers` blocks, without adapters, in place.

    >>> layers = nn.ModuleList([nn.Identity(), nn.Identity()])
    >>> lay_ladder(layers, 1)
    >>> [type(layer).__name__ for layer in layers]
    ['Identity', 'LadderBlock']
    """
    begin = len(layers) - num_layers
    for i in range(begin, len(layers)):
        layers[i] = LadderBlock(layers[i], first=i == begin, last=i == len(layers) - 1)
