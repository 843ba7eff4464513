"""A: what the device can do at most."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from gpu_sections.base import Bench, Case, Run

PRECISIONS = {
    "bf16": (torch.bfloat16, "highest"),
    "fp32": (torch.float32, "highest"),
    "fp32 by TF32": (torch.float32, "high"),
}


def ceilings(bench: Bench) -> Iterator[Case]:
    """A copy, a large product, and the products of a feed-forward network of ViT-B/16 for 64 images."""
    size, tokens = bench.sizes.square, 12608 // (100 if bench.sizes.toy else 1)
    copied = 4.0 * bench.sizes.copied  # read and written
    name = f"copy of {2 * bench.sizes.copied / 2**30:.1f} GiB"
    yield Case(name, "3.0 TB/s", partial(_copy, bench), {"TB/s": copied / 1e12})
    expected = {"bf16": "790", "fp32": "50-55", "fp32 by TF32": "300-400"}
    for name in PRECISIONS:
        product = partial(_product, bench, name, size, size, size)
        work = {"TFLOP/s": 2 * size**3 / 1e12}
        yield Case(f"product of {size:,}^3, {name}", f"{expected[name]} TFLOP/s", product, work)
    expected = {"bf16": "500-600 TFLOP/s", "fp32": "-", "fp32 by TF32": "-"}
    for name in PRECISIONS:
        wide = partial(_product, bench, name, tokens, 768, 3072)
        work = {"TFLOP/s": 2 * tokens * 768 * 3072 / 1e12}
        yield Case(f"[{tokens:,}, 768] x [768, 3072], {name}", expected[name], wide, work)
        narrow = partial(_product, bench, name, tokens, 3072, 768)
        narrow_expected = "400-450 TFLOP/s" if name == "bf16" else "-"
        yield Case(f"[{tokens:,}, 3072] x [3072, 768], {name}", narrow_expected, narrow, work)


def _copy(bench: Bench) -> Run:
    source = bench.randn(bench.sizes.copied, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(bench: Bench, precision: str, rows: int, inner: int, columns: int) -> Run:
    dtype, matmul = PRECISIONS[precision]
    torch.set_float32_matmul_precision(matmul)
    a, b = bench.randn(rows, inner, dtype=dtype), bench.randn(inner, columns, dtype=dtype)
    bias, out = bench.randn(columns, dtype=dtype), bench.randn(rows, columns, dtype=dtype)
    return lambda: torch.addmm(bias, a, b, out=out)
