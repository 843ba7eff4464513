"""Whether half precision pays on a device."""

from __future__ import annotations

import logging
from functools import cache

import torch

logger = logging.getLogger(__name__)


def multiplies_bfloat16(device: torch.device | str = "cpu") -> bool:
    """Whether a device multiplies matrices of bfloat16 by its own instructions.

    On a CPU it is what torch asks before it hands a product to oneDNN: on x86, AVX-512. Without it torch multiplies
    number by number, many times slower than in float32.

    Example:
        >>> isinstance(multiplies_bfloat16(), bool)
        True
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return built and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


@cache  # a run has several trainers
def warn_of_slow_precision(precision: str, device: str) -> None:
    """Say once that a trainer's precision is slower than float32 on this kind of device.

    Args:
        precision: Lightning's name of it, as `bf16-mixed`. On a CPU, `16-mixed` is that too.
        device: Kind of device: `cpu`, `cuda`.
    """
    if "16" in precision and device == "cpu" and not multiplies_bfloat16(device):
        logger.warning(
            "trainer.precision: this processor has no instructions for bfloat16, in which matrix products are then "
            "many times slower than in float32; leave %s out, or take 32-true",
            precision,
        )
