"""TagCLIP's refinement of label maps by the tower's own attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.heads.chunks import chunks
from ovml.utils.tensors import full_precision


def patch_attention(
    states: Sequence[Tensor], layers: Sequence[Any], blocks: Sequence[int] | None = None, votes: int | None = None
) -> Tensor:
    """How patches attend to one another, over blocks: `A [B, P, P]`, at least float32.

    The mean over the heads of each block's attention, without the class token, and not normalised again. `A` is the
    mean of some blocks, with the entries alone that are above their block's mean in at least `votes` blocks.

    Args:
        states: The input of each block `[B, 1+P, W]`.
        layers: All blocks.
        blocks: Blocks that are averaged, counted from 1. Default: the three before the last, as in the published code
            (9, 10 and 11 of 12).
        votes: Number of blocks that must agree. Default: a third, as in the published code (4 of 12).
    """
    number = len(layers)
    blocks = range(max(1, number - 3), max(2, number)) if blocks is None else blocks
    votes = max(1, round(number / 3)) if votes is None else votes
    total, agreeing = torch.zeros(()), torch.zeros((), dtype=torch.int8)
    for block, (layer, entering) in enumerate(zip(layers, states, strict=False), start=1):
        attention, normed = layer.self_attn, layer.layer_norm1(entering)
        queries, keys = (
            projection(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj)
        )
        weights = full_precision(queries @ keys.transpose(-1, -2) * attention.scale).softmax(dim=-1)
        mean = weights.mean(dim=1)[:, 1:, 1:]
        agreeing = agreeing + (mean > mean.mean(dim=(-2, -1), keepdim=True)).char()
        if block in blocks:
            total = total + mean
    return total / len(blocks) * (agreeing >= votes)


def refined(shares: Tensor, attention: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Smooth label maps by attention, then again inside the regions where each label is found.

    Args:
        shares: `[B, P, C]`, how much each patch shows each name.
        attention: `[B, P, P]`.
        grid: Rows and columns of the patches.

    Returns:
        The smoothed maps and the refined ones, `[B, P, C]` each.
    """
    smoothed = attention @ shares
    scaled = from_0_to_1(smoothed)
    bits = (255 * scaled).floor() > (255 * scaled.mean(dim=1, keepdim=True)).floor()
    inside = component_boxes(bits.transpose(1, 2).unflatten(-1, grid)).flatten(-2).transpose(1, 2)
    return smoothed, attention @ (shares * inside)


def component_boxes(bits: Tensor) -> Tensor:
    """The bounding boxes of the 8-connected components of maps `[..., H, W]`, as maps of the same shape.

    As in the published code the last row and column are never inside.

    >>> component_boxes(torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()).int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    height, width = bits.shape[-2:]
    flat = bits.reshape(-1, height, width)
    number = torch.arange(1, height * width + 1, device=bits.device, dtype=torch.float32).view(height, width) * flat
    while True:  # each component takes the largest number in it
        wider = F.max_pool2d(number.unsqueeze(1), 3, stride=1, padding=1).squeeze(1) * flat
        if wider.equal(number):
            break
        number = wider
    parts = chunks(number.long(), 8 * height * width)
    return torch.cat([_boxes(part) for part in parts]).view_as(bits) if len(flat) else bits


def _boxes(number: Tensor) -> Tensor:
    """Maps `[N, H, W]` of the boxes of all places of one number, of numbers from 0 to H W; 0 is no component."""
    maps, height, width = number.shape
    number, size = number.flatten(1), height * width + 1
    rows, columns = (place.flatten().expand_as(number) for place in _places(height, width, number.device))
    unused = number.new_zeros(maps, size)
    top, left = (unused.scatter_reduce(1, number, x, "amin", include_self=False) for x in (rows, columns))
    bottom, right = (
        unused.scatter_reduce(1, number, x + 1, "amax", include_self=False).clamp(max=side - 1)
        for x, side in ((rows, height), (columns, width))
    )
    # Each box adds 1 inside it, by its corners and sums over rows and columns.
    corners = torch.zeros(maps, height * width, device=number.device)
    for sign, row, column in ((1, top, left), (-1, top, right), (-1, bottom, left), (1, bottom, right)):
        corners.scatter_add_(1, (row * width + column)[:, 1:], corners.new_full((), sign).expand(maps, size - 1))
    return corners.view(maps, height, width).cumsum(dim=1).cumsum(dim=2) > 0.5


def _places(height: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
    return torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")


def from_0_to_1(maps: Tensor) -> Tensor:
    """Each map of `[B, P, C]` from 0 at its lowest to 1 at its highest; NaN where it is the same everywhere."""
    least, most = maps.amin(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)
    return (maps - least) / (most - least)
