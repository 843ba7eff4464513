"""What a device can do: `torch.compile`, fast half precision."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch

from ovml.encoders.execution import check_compiler
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
