"""RAM's ladder as published: a path for the patches whose adapters attend to the label embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders.adapters.base import TowerAdapter
from ovml.encoders.adapters.ladder import over_grid, run_with_tokens
from ovml.encoders.clip import ImageEncoder, ImageTail
from ovml.encoders.sources import attend_by_values
from ovml.utils.errors import UserError, check_at_most, check_not_negative, check_positive
from ovml.utils.tensors import through_float16


class RAMLadder(TowerAdapter):
    r"""Ladder local adapter as published (RAM; Tan et al., CVPR 2025, arXiv 2503.15337); `Ladder` is ovml's own form.

    Let `x_i [1+P, W]` be the input of block `i`, and `y [L, D]` the label embeddings, not normalised. The local path
    `z [P, W]` starts as the patches; each block changes it by

        z = z + VV_i(x_i) + A_i(x_{i+1}, y)     A_i: `LabelAdapter`, in the last `num_layers` blocks

    `VV_i` is attention by values, see `Ladder`. The last `num_layers` blocks also read `num_tokens` learned tokens
    behind the patches, each block its own; `VV_i` does not see them. The patch embeddings are `z` after post-layernorm
    and projection. So they depend on the set of labels that is scored, and the features of an image are
    `LabelDependentFeatures`. `z` never changes `x`: the tokens change the global embedding, the adapters do not.

    The patches of the teacher come from the same path without tokens and adapters.

    Args:
        num_layers: Number of last blocks that have an adapter and tokens.
        num_tokens: Number of learned tokens in each of these blocks; they start as N(0, 0.02^2).
        path_layers: Number of last blocks that the local path runs over. Default: all, as published.
        kernel_size: Kernel size of the convolution over the maps of an adapter; odd.
        float16_tokens: Whether tokens are rounded to float16 in each pass, and so are their gradients, as in the
            published code. Gradients below 6e-8 then become 0, unless the loss is scaled, as `16-mixed` does.

    Raises:
        UserError: An argument is out of its range; or, in `attach`, the tower is too short or not a CLIP's.
    """

    added = frozenset({"local_path", "adapt_tokens"})

    def __init__(
        self,
        num_layers: int = 3,
        num_tokens: int = 8,
        path_layers: int | None = None,
        kernel_size: int = 3,
        float16_tokens: bool = True,
    ) -> None:
        check_positive(self, num_layers=num_layers)
        check_not_negative(self, num_tokens=num_tokens)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise UserError(f"RAMLadder: kernel_size must be odd; got {kernel_size}")
        if path_layers is not None and path_layers < num_layers:
            raise UserError(
                f"RAMLadder: path_layers must be at least num_layers; got {path_layers}, num_layers={num_layers}"
            )
        check_at_most(self, 2**12, num_tokens=num_tokens)
        check_at_most(self, 15, kernel_size=kernel_size)
        self.num_layers = num_layers
        self.num_tokens = num_tokens
        self.path_layers = path_layers
        self.kernel_size = kernel_size
        self.float16_tokens = float16_tokens

    def attach(self, encoder: ImageEncoder, embed_dim: int) -> None:
        """Add the path to the tower, and tokens and adapters to its last blocks."""
        if encoder.model_type != "clip":
            raise UserError(
                f"RAMLadder: needs a CLIP, whose class token has a path of its own; this tower is {encoder.model_type};"
                " use LoRAStage or VisualPromptStage"
            )
        layers, config = encoder.vision_model.encoder.layers, encoder.vision_model.config
        path_layers = len(layers) if self.path_layers is None else self.path_layers
        encoder.tail(max(self.num_layers, path_layers))  # raises if the tower is too short
        like, adapted = next(layers.parameters()), len(layers) - self.num_layers
        for i in range(len(layers) - path_layers, len(layers)):
            keeps, last = i >= adapted, i == len(layers) - 1
            layers[i] = RAMBlock(layers[i], encoder.num_patches, keeps, last, self.float16_tokens)
            if self.num_tokens and keeps:
                tokens = 0.02 * torch.randn(self.num_tokens, config.hidden_size)
                layers[i].adapt_tokens = nn.Parameter(tokens.to(like))
        grid = config.image_size // config.patch_size
        sizes = (config.hidden_size, embed_dim, grid, self.kernel_size)
        encoder.local_path = LocalPath([LabelAdapter(*sizes) for _ in range(self.num_layers)]).to(like)

    def adapters(self, encoder: ImageEncoder) -> list[nn.Parameter]:
        """The parameters of the adapters."""
        return [] if encoder.local_path is None else list(encoder.local_path.parameters())

    def tokens(self, encoder: ImageEncoder) -> list[nn.Parameter]:
        """The tokens `[num_tokens, W]` of each adapted block."""
        return super().parameters(encoder)

    def parameters(self, encoder: ImageEncoder) -> list[nn.Parameter]:
        """The parameters of the adapters, then the tokens."""
        return [*self.adapters(encoder), *self.tokens(encoder)]

    def attach_to_teacher(self, encoder: ImageEncoder, teacher: ImageTail) -> None:
        """Add the path, without tokens and adapters, to the teacher's blocks.

        Raises:
            UserError: A stage changes some of the adapted blocks only.
        """
        if not teacher.layers:  # no stage changes the tower
            return
        if len(teacher.layers) < self.num_layers:
            raise UserError(
                f"RAMLadder: the tower's last {self.num_layers} blocks have its tokens; a stage that changes "
                f"{len(teacher.layers)} of them cannot follow it"
            )
        path_layers = encoder.num_layers if self.path_layers is None else self.path_layers
        teacher.local_path = None
        for i in range(max(0, len(teacher.layers) - path_layers), len(teacher.layers)):
            teacher.layers[i] = RAMBlock(teacher.layers[i], encoder.num_patches, False, i == len(teacher.layers) - 1)


class RAMBlock(nn.Module):
    """A block with the local path beside it; see `RAMLadder`.

    Behind the tower's hidden states it reads and returns those of the path, then the patches that earlier blocks kept
    for their adapters.

    Args:
        base_layer: The block.
        num_patches: Number of patches `P`.
        keeps: Whether the patches of its output are kept for an adapter.
        last: Whether it is the last block: of the tower's hidden states only the class token is then returned.
        float16_tokens: See `RAMLadder`.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip
        >>> block = load_clip("ovml-demo").vision_model.encoder.layers[0]
        >>> states = RAMBlock(block, 36, keeps=True, last=False)(torch.zeros(2, 1 + 36, 128))
        >>> states.shape, RAMBlock(block, 36, keeps=True, last=True)(states).shape
        (torch.Size([2, 109, 128]), torch.Size([2, 109, 128]))
    """

    adapt_tokens: nn.Parameter | None

    def __init__(
        self, base_layer: nn.Module, num_patches: int, keeps: bool, last: bool, float16_tokens: bool = True
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.num_patches = num_patches
        self.keeps = keeps
        self.last = last
        self.float16_tokens = float16_tokens
        self.adapt_tokens = None

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Run `[B, 1 + P, W]` of the tower, `[B, P, W]` of the path (if it has begun) and kept patches."""
        num_patches = self.num_patches
        whole, rest = hidden_states[:, : 1 + num_patches], hidden_states[:, 1 + num_patches :]
        path, kept = (rest[:, :num_patches], rest[:, num_patches:]) if rest.shape[1] else (whole[:, 1:], rest)
        path = path + attend_by_values(self.base_layer, whole)
        tokens: Tensor | None = self.adapt_tokens
        if tokens is not None and self.float16_tokens:
            tokens = through_float16(tokens)
        whole = run_with_tokens(self.base_layer, whole, attention_mask, tokens)
        parts = [whole[:, :1] if self.last else whole, path, kept]
        return torch.cat([*parts, whole[:, 1:]] if self.keeps else parts, dim=1)


class LocalPath(nn.Module):
    """The end of the local path: adds what the adapters of the last blocks see for the labels.

    Args:
        adapters: One for each block that keeps its patches.
    """

    def __init__(self, adapters: Sequence[LabelAdapter]) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)

    def forward(self, hidden_states: Tensor, label_embeds: Tensor) -> Tensor:
        """Return the class token and the patches of the path, `[B, 1+P, W]`.

        Args:
            hidden_states: The class token, the path without its adapters, and for each adapter the patches of its
                block's output, `[B, 1 + P + n P, W]`.
            label_embeds: Embeddings `[L, D]` of the labels that are scored together.
        """
        num_patches = (hidden_states.shape[1] - 1) // (1 + len(self.adapters))
        class_token, patches = hidden_states[:, :1], hidden_states[:, 1:].unflatten(1, (-1, num_patches))
        path = patches[:, 0]
        for i, adapter in enumerate(self.adapters, start=1):
            path = path + adapter(patches[:, i], label_embeds)
        return torch.cat([class_token, path], dim=1)


class LabelAdapter(nn.Module):
    r"""Adapter of RAM's ladder as published: two branches that attend to the labels, mixed by spatial attention maps.

    On the grid of the patches `x`, with `h = D`:

        c = gelu(BatchNorm(conv1x1 x)),    d = gelu(BatchNorm(conv3x3 x))
        k = LayerNorm(y)
        c = c + softmax(LayerNorm(c) k^T / sqrt(h)) k            over the labels; likewise d
        [m_c; m_d] = sigmoid(conv [mean_h [c; d]; max_h [c; d]])     two maps
        A(x, y) = W_o (m_c * c + m_d * d)

    The attention has no weights of its own. In training, batch norm uses the images of the batch, in evaluation its
    averages. `W_o` is not initialised to zero. Initial weights of the convolutions are rounded to float16.

    Args:
        width: Channels `W` of the block.
        embed_dim: Width `D` of label embeddings, and channels of the branches.
        grid: Number of patches per row, and of rows.
        kernel_size: Kernel size of the convolution over the two maps.

    Example:
        >>> LabelAdapter(width=8, embed_dim=4, grid=3)(torch.randn(2, 9, 8), torch.randn(5, 4)).shape
        torch.Size([2, 9, 8])
    """

    def __init__(self, width: int, embed_dim: int, grid: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.grid = grid
        self.point = nn.Linear(width, embed_dim, bias=False)
        self.point_norm = nn.BatchNorm1d(embed_dim)
        self.around = nn.Conv2d(width, embed_dim, 3, padding=1, bias=False)
        self.around_norm = nn.BatchNorm1d(embed_dim)
        self.query_norm1 = nn.LayerNorm(embed_dim)
        self.query_norm2 = nn.LayerNorm(embed_dim)
        self.text_norm = nn.LayerNorm(embed_dim)
        self.maps = nn.Conv2d(2, 2, kernel_size, padding=kernel_size // 2, bias=False)
        self.out = nn.Linear(embed_dim, width, bias=False)
        for layer in (self.point, self.around, self.maps, self.out):
            layer.weight.data = layer.weight.data.half().float()

    def forward(self, patches: Tensor, label_embeds: Tensor) -> Tensor:
        """Return the update `[B, P, W]` of the local path for patches `[B, P, W]` and labels `[..., D]`."""
        labels = self.text_norm(label_embeds.flatten(0, -2).to(self.text_norm.weight.dtype))
        point = _attend(_normed_gelu(self.point(patches), self.point_norm), self.query_norm1, labels)
        around = over_grid(self.around, patches, self.grid)
        around = _attend(_normed_gelu(around, self.around_norm), self.query_norm2, labels)
        both = torch.cat([point, around], dim=-1)
        maps = over_grid(self.maps, torch.stack([both.mean(dim=-1), both.amax(dim=-1)], dim=-1), self.grid).sigmoid()
        added: Tensor = self.out(maps[..., :1] * point + maps[..., 1:] * around)
        return added


def _normed_gelu(patches: Tensor, norm: nn.Module) -> Tensor:
    """`gelu(BatchNorm(x))` of patches `[B, P, h]`."""
    return F.gelu(norm(patches.flatten(0, 1)).view_as(patches))


def _attend(patches: Tensor, query_norm: nn.Module, labels: Tensor) -> Tensor:
    """Add to patches `[B, P, h]` their attention to labels `[L, h]`, which are keys and values; one head."""
    queries = query_norm(patches).to(patches.dtype).unsqueeze(1)
    keys = labels.to(patches.dtype).expand(patches.shape[0], 1, -1, -1)
    return patches + F.scaled_dot_product_attention(queries, keys, keys).squeeze(1)
