"""Layer-wise learning rates and the learning rate schedule: linear warm-up, then half a cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ovml.utils.errors import UserError


class VisionTower(Protocol):
    """The attributes that `layer_decay_groups` reads; `CLIPModel` and `ImageEncoder` have them."""

    vision_model: Any
    visual_projection: Any


def layer_decay_groups(
    clip: VisionTower, lr: float, weight_decay: float, layer_decay: float, num_layers: int
) -> list[dict[str, Any]]:
    """Make optimizer groups with layer-wise learning rates for the last blocks of a vision tower.

    Block `i` (1-based) of `N` trains at `lr * layer_decay ** (N + 1 - i)`, post-layernorm and projection at `lr`.
    One-dimensional parameters have no weight decay. The published MKT code does the same in `param_groups_lrd`,
    which comes from BEiT.

    Args:
        clip: A `CLIPModel` or an `ImageEncoder`.
        lr: Peak rate of post-layernorm and projection.
        weight_decay: Decoupled weight decay of matrices.
        layer_decay: Factor per block, counted from the end.
        num_layers: Number of last blocks to train.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `name`, from the first trained block to the projection.

    Raises:
        UserError: The tower has fewer than `num_layers` blocks.
    """
    layers = clip.vision_model.encoder.layers
    depth = len(layers)
    if not 0 <= num_layers <= depth:
        raise UserError(f"num_layers must be from 0 to {depth}, the tower's blocks; got {num_layers}")
    modules: list[tuple[str, float, list[nn.Module]]] = [
        (f"layer_{i + 1}", lr * layer_decay ** (depth - i), [layers[i]]) for i in range(depth - num_layers, depth)
    ]
    modules.append((f"layer_{depth + 1}", lr, [clip.vision_model.post_layernorm, clip.visual_projection]))
    groups = []
    for name, rate, parts in modules:
        groups += decay_groups([p for part in parts for p in part.parameters()], name, rate, weight_decay)
    return groups


def decay_groups(params: Sequence[nn.Parameter], name: str, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups of one rate; parameters of one dimension have no weight decay."""
    matrices, vectors = [p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1]
    groups = [(matrices, f"{name}_decay", weight_decay), (vectors, f"{name}_no_decay", 0.0)]
    return [{"params": own, "lr": lr, "weight_decay": decay, "name": title} for own, title, decay in groups if own]


def warmup_cosine(step: float, total_steps: float, warmup_steps: float, base_lr: float, min_lr: float) -> float:
    """Return the learning rate at a step: linear from 0 to `base_lr`, then half a cosine to `min_lr`.

    >>> tuple(round(warmup_cosine(s, 20, 2, 1e-3, 1e-6), 6) for s in (0, 1, 2, 20))
    (0.0, 0.0005, 0.001, 1e-06)
    """
    if step < warmup_steps:
        return base_lr * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(total_steps - warmup_steps, 1e-12))
    return min_lr + (base_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine_schedule(
    optimizer: Optimizer, total_steps: float, warmup_steps: float = 0, min_lr: float = 0.0
) -> LambdaLR:
    """A scheduler that follows `warmup_cosine`; step it once per batch.

    Each group's own rate is its peak and scales the whole curve, including its end.

    Args:
        optimizer: Its groups' rates are the peaks.
        total_steps: Steps of the whole training.
        warmup_steps: Steps of the linear warm-up; may be fractional.
        min_lr: Final rate of a group whose peak is the optimizer's own `lr`.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> warmup_cosine_schedule(optimizer, total_steps=10, warmup_steps=2).get_last_lr()
        [0.0]
    """
    peak = float(optimizer.defaults["lr"])
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, total_steps, warmup_steps, peak, min_lr) / peak)
