"""TagCLIP's refinement of label maps by the tower's own attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def patch_attention(states: Sequence[Tensor], layers: Sequence[Any], blocks: Sequence[int], votes: int = 4) -> Tensor:
    """How patches attend to one another, over blocks: `A [B, P, P]`.

    The mean over the heads of each block's attention, without the class token, and not normalised again. `A` is the
    mean of some blocks, with the entries alone that are above their block's mean in at least `votes` blocks.

    Args:
        states: The input of each block `[B, 1+P, W]`.
        layers: All blocks.
        blocks: Blocks that are averaged, counted from 1: 9, 10 and 11 in the published code.
        votes: Number of blocks that must agree.
    """
    maps = []
    for layer, entering in zip(layers, states, strict=False):
        attention, normed = layer.self_attn, layer.layer_norm1(entering)
        queries, keys = (
            projection(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj)
        )
        weights = (queries @ keys.transpose(-1, -2) * attention.scale).softmax(dim=-1)
        maps.append(weights.mean(dim=1)[:, 1:, 1:])
    above = sum(((one > one.mean(dim=(-2, -1), keepdim=True)).int() for one in maps), start=torch.zeros(()))
    mean = torch.stack([maps[block - 1] for block in blocks]).mean(dim=0)
    return mean * (above >= votes)


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
    scaled = _scaled(smoothed)
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
    boxes = torch.zeros_like(flat)
    for i in range(len(flat)):
        for component in number[i].unique():
            if component > 0:
                rows, columns = (number[i] == component).nonzero(as_tuple=True)
                bottom, right = min(int(rows.max()) + 1, height - 1), min(int(columns.max()) + 1, width - 1)
                boxes[i, int(rows.min()) : bottom, int(columns.min()) : right] = True
    return boxes.view_as(bits)


def _scaled(maps: Tensor) -> Tensor:
    """Each map of `[B, P, C]` from 0 to 1."""
    least, most = maps.amin(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)
    return (maps - least) / (most - least)
