"""ovml's form of RAM's ladder: patch embeddings from a learned path beside the vision tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders.adapters.base import TowerAdapter
from ovml.encoders.clip import ImageEncoder, ImageTail
from ovml.encoders.sources import attend_by_values
from ovml.utils.errors import UserError, check_at_most


class Ladder(TowerAdapter):
    r"""ovml's form of RAM's ladder: a local path for the patches beside the last blocks (Tan et al., CVPR 2025).

    The paper is arXiv 2503.15337; `RAMLadder` is the ladder as published. Let `x_i [1+P, W]` be the output of block `i`
    of `N`. The local path `z [P, W]` starts as the patches of `x_{N-num_layers}`; in each of the last `num_layers`
    blocks

        z = z + VV_i(x_{i-1}) + A_i(x_i)        A_i: `LocalAdapter`, in the last `num_adapters` blocks
        VV_i(x) = W_o softmax(v v^T / sqrt(d)) v + b,     v = W_v LayerNorm(x) + b_v of the block, in each head

    Attention uses the values in place of queries and keys, the patches also attend to the class token, and no
    feed-forward layer follows. The patch embeddings are `z` after post-layernorm and projection; the global embedding
    equals the original's bit for bit. No gradient passes through a block. The output of an untrained adapter is zero.

    Differences from the published form:

    - Adapters do not attend to the label embeddings, so the features of an image do not depend on labels and can be
      cached.
    - Adapters have layer norm in the place of batch norm, so the features do not depend on the batch, and start as
      zero.
    - By default the path runs over three blocks, and there are no tokens. Tokens in the adapted blocks, as in
      `VisualPrompts`, change the global embedding, and a gradient then passes through these blocks.

    Args:
        num_layers: Number of last blocks that the local path runs over; RAM uses the tower's depth.
        num_adapters: Number of last blocks that have an adapter.
        num_tokens: Number of learned tokens in each of these blocks.
        hidden_dim: Channels of an adapter. Default: the width of the label embeddings, as published.
        kernel_size: Kernel size of an adapter's convolutions; odd.

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
        check_at_most(self, 2**12, num_tokens=num_tokens, hidden_dim=hidden_dim)
        check_at_most(self, 15, kernel_size=kernel_size)
        self.num_layers = num_layers
        self.num_adapters = num_adapters
        self.num_tokens = num_tokens
        self.hidden_dim = hidden_dim
        self.kernel_size = kernel_size

    def attach(self, encoder: ImageEncoder, embed_dim: int) -> None:
        """Add the local path and the adapters to the last blocks."""
        if encoder.model_type != "clip":
            raise UserError(
                f"Ladder: needs a CLIP, whose class token has a path of its own; this tower is {encoder.model_type}; "
                "use LoRAStage or VisualPromptStage"
            )
        layers, config = encoder.vision_model.encoder.layers, encoder.vision_model.config
        encoder.tail(self.num_layers)  # raises if the tower is too short
        lay_ladder(layers, self.num_layers)
        like = next(layers.parameters())
        for block in layers[len(layers) - self.num_adapters :]:
            width, grid = config.hidden_size, config.image_size // config.patch_size
            block.local_adapter = LocalAdapter(width, self.hidden_dim or embed_dim, grid, self.kernel_size).to(like)
            if self.num_tokens:
                block.adapt_tokens = nn.Parameter(0.02 * torch.randn(self.num_tokens, width).to(like))

    def attach_to_teacher(self, encoder: ImageEncoder, teacher: ImageTail) -> None:
        """Add the local path, without adapters, to the teacher's blocks."""
        if len(teacher.layers) >= self.num_layers:  # else no stage trains the ladder
            lay_ladder(teacher.layers, self.num_layers)


class LocalAdapter(nn.Module):
    r"""Adapter of RAM's ladder: a linear and a convolutional branch, mixed by spatial attention maps.

    On the grid of the patches `x`, with `[c; d]` for concatenated channels and `*` for the product with a map:

        c = gelu(LayerNorm(W_c x))                       each patch by itself
        d = gelu(LayerNorm(conv_d x))                    with its neighbours
        [m_c; m_d] = sigmoid(conv [mean_h [c; d]; max_h [c; d]])     two maps
        A(x) = W_o (m_c * c + m_d * d)

    The published code uses batch norm. Here `LayerNorm` normalises the channels of each patch, so the result for an
    image does not depend on its batch. `W_o` is initialised to zero.

    Args:
        width: Channels `W` of the block.
        hidden_dim: Channels `h` of the branches.
        grid: Number of patches per row, and of rows.
        kernel_size: Kernel size of both convolutions.

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
        """Return the update `[B, P, W]` of the local path for patches `[B, P, W]`."""
        close = F.gelu(self.close_norm(self.close(patches)))
        wide = F.gelu(self.wide_norm(over_grid(self.wide, patches, self.grid)))
        both = torch.cat([close, wide], dim=-1)
        maps = over_grid(self.maps, torch.stack([both.mean(dim=-1), both.amax(dim=-1)], dim=-1), self.grid).sigmoid()
        added: Tensor = self.out(maps[..., :1] * close + maps[..., 1:] * wide)
        return added


class LadderBlock(nn.Module):
    """A block with the local path beside it; see `Ladder`.

    Between the first and the last block of the path, the path's hidden states are appended to the tower's.

    Args:
        base_layer: The block.
        first: Whether the path starts here.
        last: Whether it ends here; the output is then the tower's class token and the path's patches.

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
        """Run the tower's hidden states `[B, 1+P, W]`, and the path's `[B, P, W]` appended to them."""
        num_patches = hidden_states.shape[1] - 1 if self.first else hidden_states.shape[1] // 2
        whole = hidden_states[:, : 1 + num_patches]
        local = hidden_states[:, -num_patches:]
        # Without tokens, nothing is trained on the tower's own path up to here.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.adapt_tokens is not None):
            attended = attend_by_values(self.base_layer, whole)
            whole = run_with_tokens(self.base_layer, whole, attention_mask, self.adapt_tokens)
        local = local + attended
        if self.local_adapter is not None:
            local = local + self.local_adapter(whole[:, 1:])
        return torch.cat([whole[:, :1] if self.last else whole, local], dim=1)


def run_with_tokens(
    block: nn.Module, hidden_states: Tensor, attention_mask: Tensor | None, tokens: Tensor | None
) -> Tensor:
    """Run a block on `[B, T, W]` with learned tokens `[n, W]` behind them, which are dropped after it."""
    if tokens is None:
        out: Tensor = block(hidden_states, attention_mask)
        return out
    tokens = tokens.to(hidden_states.dtype).expand(hidden_states.shape[0], -1, -1)
    out = block(torch.cat([hidden_states, tokens], dim=1), attention_mask)
    return out[:, : hidden_states.shape[1]]


def over_grid(convolution: nn.Module, patches: Tensor, grid: int) -> Tensor:
    """Convolve patches `[B, P, C]` as maps of `grid * grid`."""
    maps = patches.transpose(1, 2).unflatten(-1, (grid, grid))
    out: Tensor = convolution(maps).flatten(2).transpose(1, 2)
    return out


def lay_ladder(layers: nn.ModuleList, num_layers: int) -> None:
    """Wrap the last `num_layers` blocks in place to add the local path, without adapters.

    >>> layers = nn.ModuleList([nn.Identity(), nn.Identity()])
    >>> lay_ladder(layers, 1)
    >>> [type(layer).__name__ for layer in layers]
    ['Identity', 'LadderBlock']
    """
    begin = len(layers) - num_layers
    for i in range(begin, len(layers)):
        layers[i] = LadderBlock(layers[i], first=i == begin, last=i == len(layers) - 1)
