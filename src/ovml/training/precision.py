"""What a device can do: `torch.compile`, fast half precision."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from ovml.encoders.execution import check_compiler
from ovml.training.stages import Stage
from ovml.utils.devices import multiplies

logger = logging.getLogger(__name__)


def multiplies_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether a device has its own instructions for bfloat16 matrix products; see `ovml.utils.devices.multiplies`.

    Example:
        >>> isinstance(multiplies_bfloat16(), bool)
        True
    """
    return multiplies(torch.bfloat16, device)


def check_device(trainer: Any, compile: bool) -> None:
    """Check that a trainer's device can do what is asked of it; warn if the precision is slow there.

    Args:
        trainer: Lightning's trainer.
        compile: Whether blocks are compiled.

    Raises:
        UserError: `compile` cannot work there.
    """
    device = trainer.strategy.root_device
    if compile:
        check_compiler(device)
    if trainer.is_global_zero:
        warn_of_slow_precision(str(trainer.precision), device.type)


def stage_precision(options: Mapping[str, Any], stage: Stage) -> dict[str, str]:
    """Choose the precision of a stage's trainer that is given none and computes with CUDA.

    It is the stage's own, or else `bf16-mixed` if the device multiplies bfloat16.

    Args:
        options: Of `lightning.pytorch.Trainer`.
        stage: What the trainer trains.

    Returns:
        The option `precision`, if one is chosen.
    """
    plugins = options.get("plugins") or []
    plugins = plugins if isinstance(plugins, (list, tuple)) else [plugins]
    is_given = options.get("precision") is not None or any(isinstance(plugin, Precision) for plugin in plugins)
    if is_given or not _computes_with_cuda(options):
        return {}
    precision = stage.precision
    if precision is None and not _forks(options) and multiplies_bfloat16("cuda"):
        precision = "bf16-mixed"
    return {} if precision is None else {"precision": precision}


def allow_tf32(options: Mapping[str, Any], stages: Sequence[Stage]) -> None:
    """Let CUDA multiply what stays float32 in TF32.

    Nothing changes for a trainer that is given `32-true`, for stages that say their precision, as those of published
    trainings do, and where torch was told another one.

    Args:
        options: Of `lightning.pytorch.Trainer`.
        stages: What is trained or was trained.
    """
    is_exact = str(options.get("precision")) in ("32-true", "32") or any(stage.precision for stage in stages)
    if _computes_with_cuda(options) and not is_exact and torch.get_float32_matmul_precision() == "highest":
        torch.set_float32_matmul_precision("high")


def precision_note(trainer: Any) -> str:
    """What to say of a trainer's precision; nothing for float32 on a CPU."""
    if trainer.strategy.root_device.type != "cuda":
        return "" if trainer.precision == "32-true" else f", {trainer.precision}"
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return f", {trainer.precision}" + (", float32 products in TF32" if tf32 else "")


def _computes_with_cuda(options: Mapping[str, Any]) -> bool:
    return options.get("accelerator") in (None, "auto", "gpu", "cuda") and torch.cuda.is_available()


def _forks(options: Mapping[str, Any]) -> bool:
    """Whether Lightning may fork processes, which cannot use CUDA if the device was asked anything before."""
    strategy = options.get("strategy")
    may_choose = strategy in (None, "auto") and hasattr(sys, "ps1") and torch.cuda.device_count() > 1
    return may_choose or any(word in str(strategy) for word in ("fork", "notebook"))


def held_type(trainer: Any) -> torch.dtype | None:
    """The type in which a trainer's frozen weights can be held: that of its mixed precision.

    Returns:
        `None` without mixed precision, and where the strategy keeps parameters in shards.
    """
    device = trainer.strategy.root_device.type
    if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy)):
        return None
    with trainer.precision_plugin.train_step_context():
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


@cache  # a run has several trainers
def warn_of_slow_precision(precision: str, device: str) -> None:
    """Warn once if a trainer's precision is slower than float32 on this type of device.

    Args:
        precision: Lightning's name of the precision, such as `bf16-mixed`. On a CPU `16-mixed` uses bfloat16 too.
        device: Type of the device, such as `cpu` or `cuda`.
    """
    if "16" in precision and device == "cpu" and not multiplies_bfloat16(device):
        logger.warning(
            "trainer.precision: this processor has no instructions for bfloat16, so matrix products are many times "
            "slower than in float32; remove %s or use 32-true",
            precision,
        )
