"""Learned tokens in the blocks of a vision tower."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ovml.encoders.adapters.base import TowerAdapter
from ovml.encoders.clip import ImageEncoder
from ovml.utils.errors import check_at_most, check_positive


class VisualPrompts(TowerAdapter):
    r"""Visual prompt tuning in the last blocks (VPT; Jia et al., ECCV 2022, arXiv 2203.12119).

    With `x` the class token, `E` the patches and `P_i` the prompts of block `L_i`:

    - deep: `[x_i, _, E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}])`: each block has its own prompts, whose outputs are
      dropped;
    - shallow: the first adapted block reads prompts; the blocks after it read their outputs.

    The paper adapts all blocks. Prompts have no position embedding, so their place in the sequence does not matter.
    Here they are appended, which also works for SigLIP, which has no class token. They are initialised uniformly in
    `±sqrt(6 / (3 patch_size^2 + width))`.

    Args:
        num_layers: Number of last blocks that are prompted.
        num_prompts: Number of prompts per block.
        deep: Whether each block has its own prompts.

    Raises:
        UserError: An argument is out of its range; or, in `attach`, the tower is too short.
    """

    added = frozenset({"visual_prompts"})

    def __init__(self, num_layers: int = 2, num_prompts: int = 10, deep: bool = True) -> None:
        check_positive(self, num_layers=num_layers, num_prompts=num_prompts)
        check_at_most(self, 2**12, num_prompts=num_prompts)
        self.num_layers = num_layers
        self.num_prompts = num_prompts
        self.deep = deep

    def attach(self, encoder: ImageEncoder, embed_dim: int) -> None:
        """Add prompts to the last blocks."""
        config, layers = encoder.vision_model.config, encoder.vision_model.encoder.layers
        bound = math.sqrt(6 / (3 * config.patch_size**2 + config.hidden_size))
        first, last = len(layers) - len(encoder.tail(self.num_layers).layers), len(layers) - 1
        for i in range(first, last + 1):
            prompts = None
            if self.deep or i == first:
                like = next(layers[i].parameters())
                prompts = nn.Parameter(like.new_empty(self.num_prompts, config.hidden_size))
                nn.init.uniform_(prompts, -bound, bound)
            dropped = self.num_prompts if self.deep or i == last else 0
            if prompts is not None or dropped:
                layers[i] = PromptedBlock(layers[i], prompts, dropped)


class PromptedBlock(nn.Module):
    """A block that reads prompts beside its tokens.

    Args:
        base_layer: The block.
        visual_prompts: `[K, W]`, appended to the tokens; `None` if the outputs of earlier prompts are there already.
        num_dropped: Number of tokens to remove from the end of the block's output.

    Example:
        >>> block = PromptedBlock(nn.TransformerEncoderLayer(8, 2), nn.Parameter(torch.zeros(4, 8)), num_dropped=4)
        >>> block(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, base_layer: nn.Module, visual_prompts: nn.Parameter | None, num_dropped: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.visual_prompts = visual_prompts
        self.num_dropped = num_dropped

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Run hidden states `[B, T, W]` through the block."""
        if self.visual_prompts is not None:
            prompts = self.visual_prompts.to(hidden_states.dtype).expand(hidden_states.shape[0], -1, -1)
            hidden_states = torch.cat([hidden_states, prompts], dim=1)
        hidden_states = self.base_layer(hidden_states, attention_mask)
        return hidden_states[:, : hidden_states.shape[1] - self.num_dropped]
