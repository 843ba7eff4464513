"""A stage that leaves the vision tower alone and learns patch embeddings beside it: RAM's ladder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.training.stages import VisionStage, decay_groups
from ovml.training.tuning import check_alone
from ovml.utils.errors import UserError

if TYPE_CHECKING:
    from ovml.classifier import OVMultiLabelClassifier


class LadderStage(VisionStage):
    r"""A vision stage that learns local features on a path beside the tower (RAM; Tan et al., CVPR 2025, 2503.15337).

    The paper's ladder local adapter. With `x_i [1+P, W]` what block `i` of `N` gives, the patches' own path
    `z [P, W]` begins as the patches of `x_{N-num_layers}`, and in each of the last `num_layers` blocks

        z = z + VV_i(x_{i-1}) + A_i(x_i)        A_i: `LocalAdapter`, in the last `num_adapters` blocks
        VV_i(x) = W_o softmax(v v^T / sqrt(d)) v + b,     v = W_v LayerNorm(x) + b_v of the block, in each head

    Patches attend by values instead of queries and keys, to the class token too, and no feed-forward layer follows.
    The patch embeddings are `z` after post-layernorm and projection; the global embedding stays `x_N`'s, the
    original's to the last bit. No gradient passes through a block. An untrained adapter gives zero.

    The equations were read off the published code, not the paper, whose text was not at hand; the adapter's off a
    public file whose class and arguments are the code's, found without its repository. As there: the path over all 12
    blocks, adapters in three, and a teacher whose patch embeddings come from the untrained path. Otherwise than there:

    - The code's adapters also attend, without weights, to the label embeddings. Here pictures know no labels, so that
      features can be kept, exported, and scored against others.
    - `num_tokens` is 8 there: tokens in the adapted blocks, as `VisualPromptStage` has, which `VV_i` does not see.
      They change the global embedding, and a gradient then passes through these blocks. Default: none.
    - All learns by AdamW at one rate; there the adapters at a tenth of it, the tokens by SGD at 1e-3.

    The adapters learn, and the head's, the loss's and the distillation's own parameters. A checkpoint holds what
    learned. `save_pretrained` writes the adapters beside the tower's weights, which are the original's.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`.
        num_layers: Number of last blocks that the patches' own path runs over; RAM's is the tower's depth.
        num_adapters: Number of last blocks that have an adapter.
        num_tokens: Tokens that each of these reads.
        hidden_dim: Channels of an adapter. Default: the width of the label embeddings, as published.
        kernel_size: Of its convolutions; odd.

    Raises:
        UserError: An argument is out of its range; or, when the model is made, the tower is too short or no CLIP's, or
            another stage changes it.

    Example:
        >>> from ovml import OVMultiLabelClassifier
        >>> model = OVMultiLabelClassifier("ovml-demo", ["red circle"], stages=[LadderStage(num_adapters=1)])
        >>> {name.split(".")[5] for name, p in model.named_parameters() if p.requires_grad}
        {'local_adapter'}
    """

    name = "ladder"
    added = frozenset({"local_adapter", "adapt_tokens"})

    def __init__(
        self,
        epochs: int = 20,
        lr: float = 1e-3,
        min_lr: float = 1e-6,
        warmup_epochs: float = 2,
        weight_decay: float = 0.05,
        num_layers: int = 3,
        num_adapters: int = 3,
        num_tokens: int = 0,
        hidden_dim: int | None = None,
        kernel_size: int = 3,
    ) -> None:
        super().__init__(epochs, lr, min_lr, warmup_epochs, weight_decay, 1.0, num_layers)
        if not 1 <= num_adapters <= num_layers or num_tokens < 0:
            raise UserError(
                f"stage 'ladder': num_adapters must be from 1 to num_layers, num_tokens not negative; got "
                f"num_adapters={num_adapters}, num_layers={num_layers}, num_tokens={num_tokens}"
            )
        if (hidden_dim is not None and hidden_dim < 1) or kernel_size < 1 or kernel_size % 2 == 0:
            raise UserError(
                f"stage 'ladder': hidden_dim must be at least 1, kernel_size odd; got hidden_dim={hidden_dim}, "
                f"kernel_size={kernel_size}"
            )
        self.num_adapters = num_adapters
        self.num_tokens = num_tokens
        self.hidden_dim = hidden_dim
        self.kernel_size = kernel_size

    def prepare(self, model: OVMultiLabelClassifier) -> None:
        """Lay the path beside the last blocks, with adapters, and beside the teacher's, without."""
        check_alone(self, model)
        encoder = model.image_encoder
        if encoder.model_type != "clip":
            raise UserError(
                f"stage 'ladder': needs a CLIP, whose class token has a path of its own; this tower is "
                f"{encoder.model_type}; use LoRAStage or VisualPromptStage"
            )
        layers, config = encoder.vision_model.encoder.layers, encoder.vision_model.config
        lay_ladder(layers, self.num_layers)
        if model.num_tail_layers >= self.num_layers:
            lay_ladder(model.teacher.layers, self.num_layers)
        like = next(layers.parameters())
        for block in layers[len(layers) - self.num_adapters :]:
            width, grid = config.hidden_size, config.image_size // config.patch_size
            hidden = self.hidden_dim or model.prompt.text_encoder.embed_dim
            block.local_adapter = LocalAdapter(width, hidden, grid, self.kernel_size).to(like)
            if self.num_tokens:
                block.adapt_tokens = nn.Parameter(0.02 * torch.randn(self.num_tokens, width).to(like))

    def parameter_groups(self, model: OVMultiLabelClassifier) -> list[dict[str, Any]]:
        """The adapters and their tokens, then the other parts' own parameters."""
        blocks = model.image_encoder.tail(self.num_adapters).layers
        learned = [p for name, p in blocks.named_parameters() if ".base_layer." not in name]
        return decay_groups(learned, "ladder", self.lr, self.weight_decay) + self.part_groups(model)


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
