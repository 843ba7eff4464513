"""Layer-wise learning rates, learning rate schedules, and an optimizer of two kinds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
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


def epoch_cosine(
    epoch: float, base_lr: float, epochs: float, warmup_epochs: float, warmup_lr: float, min_lr: float
) -> float:
    """Return the learning rate of an epoch, from 1, as the published code of RAM (CVPR 2025) has it.

    Below `warmup_epochs` it is linear from `warmup_lr` to `base_lr`; then it is the cosine to `min_lr` that began with
    the first epoch, so it falls a little where the warm-up ends.

    >>> [float(f"{epoch_cosine(epoch, 5e-6, 60, 3, 5e-7, 1e-7):.6g}") for epoch in (1, 2, 3, 6)]
    [2e-06, 3.5e-06, 4.96984e-06, 4.88009e-06]
    """
    if epoch < warmup_epochs:
        return warmup_lr + epoch * (base_lr - warmup_lr) / warmup_epochs
    return min_lr + (base_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1)))


def epoch_cosine_schedule(
    optimizer: Optimizer, epochs: float, warmup_epochs: float, warmup_lr: float, min_lr: float
) -> LambdaLR:
    """A scheduler that follows `epoch_cosine` for each group's own rate; step it once per epoch.

    Args:
        optimizer: Its groups' rates are the `base_lr`.
        epochs: Where the cosine ends; the training may be shorter.
        warmup_epochs: First epoch without warm-up.
        warmup_lr: Rate from which the warm-up begins, the same for all groups.
        min_lr: Rate at the end of the cosine, the same for all groups.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        >>> [round(rate, 7) for rate in epoch_cosine_schedule(optimizer, 60, 3, 5e-7, 1e-7).get_last_lr()]
        [0.0003337]
    """

    def factor(base_lr: float) -> Callable[[int], float]:
        return lambda done: epoch_cosine(done + 1, base_lr, epochs, warmup_epochs, warmup_lr, min_lr) / base_lr

    return LambdaLR(optimizer, [factor(group["lr"]) for group in optimizer.param_groups])


def fuse(optimizer: Optimizer, device: str = "cuda") -> None:
    """Let AdamW update all weights of a group in one kernel, where they are on a device of a type.

    The option is set per group rather than by AdamW's argument, with which it would undo the scaling of gradients
    itself, and Lightning would refuse to clip them.
    """
    if type(optimizer) not in (AdamW, AdamWAndSGD):
        return
    for group in optimizer.param_groups:
        if "momentum" in group or group["fused"] is not None or group["foreach"] or group["differentiable"]:
            continue
        if all(p.device.type == device and p.is_floating_point() for p in group["params"]):
            group["fused"] = True


class AdamWAndSGD(Optimizer):
    """AdamW for most groups, and SGD for groups with a `momentum`, in one optimizer, as Lightning asks for.

    Args:
        groups: Parameter groups, with settings of `torch.optim.AdamW` or, beside `momentum`, of `torch.optim.SGD`.
        lr: Rate of groups without one.

    Example:
        >>> weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
        >>> groups = [{"params": weights[:1], "lr": 0.5}, {"params": weights[1:], "momentum": 0.9}]
        >>> optimizer = AdamWAndSGD(groups, lr=1)
        >>> sum(3 * weight for weight in weights).backward()
        >>> optimizer.step()
        >>> [round(weight.item(), 3) for weight in weights]
        [0.495, -2.0]
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float = 1e-3) -> None:
        super().__init__(groups, {"lr": lr})
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as the constructor and callbacks that unfreeze weights do."""
        super().add_param_group(param_group)
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, of a checkpoint or a copy."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Make the optimizers of the two kinds, which share the groups and the state with this one."""
        by_kind: dict[type[Optimizer], list[dict[str, Any]]] = {AdamW: [], SGD: []}
        for group in self.param_groups:
            by_kind[SGD if "momentum" in group else AdamW].append(group)
        self._members = [kind(groups) for kind, groups in by_kind.items() if groups]  # type: ignore[call-arg]
        for member in self._members:
            member.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step of both kinds."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self._members:
            member.step()
        return loss
