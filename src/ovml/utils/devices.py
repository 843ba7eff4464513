"""Where a model runs, and in which precision."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from ovml.utils.errors import UserError, first_line

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by name; `auto` is one of them, see `choose_precision`."""


def choose_device(name: str | torch.device) -> torch.device:
    """The device of a name.

    Args:
        name: One of torch's, such as `cuda:1`; `auto`: the first of `cuda`, `mps` and `cpu` that is here.

    Raises:
        UserError: It cannot be used here.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    name = best_device() if name == "auto" else name
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name}: not usable here ({first_line(error)}); try cpu") from error


def best_device() -> str:
    """The first of `cuda`, `mps` and `cpu` that is here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type of numbers that a model's towers compute with.

    Args:
        name: A key of `DTYPES`; `auto`: bfloat16 on GPUs that multiply it, float16 on CUDA's older ones, and float32
            on everything else, where half precision is not always faster and changes the scores.
        device: The device.

    Raises:
        UserError: There is none of this name.

    >>> choose_precision("auto", torch.device("cpu")), choose_precision("bf16", torch.device("cpu"))
    (torch.float32, torch.bfloat16)
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if multiplies(torch.bfloat16, device) else torch.float16
    if name not in DTYPES:
        raise UserError(f"precision must be one of auto, {', '.join(DTYPES)}; got {name!r}")
    return DTYPES[name]


def precision_name(dtype: torch.dtype) -> str:
    """The name of a precision, as users write it.

    >>> precision_name(torch.bfloat16), precision_name(torch.float64)
    ('bf16', 'float64')
    """
    return next((name for name, own in DTYPES.items() if own == dtype), str(dtype).removeprefix("torch."))


def multiplies(dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Whether a device has its own instructions for matrix products of a type.

    On a CPU this is the check that torch makes before it calls oneDNN; on x86 bfloat16 requires AVX-512. Without such
    instructions torch uses a scalar loop, which is many times slower than float32.

    >>> multiplies(torch.float32)
    True
    """
    kind = torch.device(device).type
    if dtype == torch.bfloat16 and kind == "cuda":
        index = torch.device(device).index
        with nullcontext() if index is None else torch.cuda.device(index):  # the question is of the current device
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if dtype in (torch.bfloat16, torch.float16) and kind == "cpu":
        check = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
        built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return built and bool(getattr(torch.ops.mkldnn, check)())
    return True
