"""Where a training step's time goes, and how far it is from the arithmetic bound.

Usage: `python benchmarks/profile_steps.py [--quick]`

The steps are those of `cases.py`: stage 1 on ViT-B/16 (8 images), and the label embeddings of stage 2 (925 labels),
forward and backward, float32. FLOPs are counted by `torch.utils.flop_counter`; the rate that they are held against is
the best of some square matrix products measured in the same process. Operators are by their own CPU time
(`torch.profiler`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from cases import _label_step, _vision_step
from common import machine, markdown
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

STEPS = {"stage 1, ViT-B/16, 8 images": _vision_step, "stage 2, 925 labels": _label_step}


def peak_rate() -> float:
    """FLOP/s of the best of some square float32 matrix products."""
    rates = []
    for size in (1024, 1536, 2048):
        a, b = torch.randn(size, size), torch.randn(size, size)
        a @ b
        for _ in range(5):
            start = time.perf_counter()
            a @ b
            rates.append(2 * size**3 / (time.perf_counter() - start))
    return max(rates)


def seconds_of(run: Callable[[], object], repeats: int = 3) -> float:
    """Median of some calls after one that is not timed."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    args = parser.parse_args()
    cells = []
    details = []
    for name, step in STEPS.items():
        run = step(True)(args.quick)
        seconds = seconds_of(run)
        with FlopCounterMode(display=False) as counter:
            run()
        rate, flops = peak_rate(), counter.get_total_flops()
        bound = flops / rate
        share = f"{bound / seconds:.0%}"
        cells.append([name, f"{seconds:.2f} s", f"{flops / 1e9:,.0f} GFLOP", f"{rate / 1e9:,.0f} GFLOP/s", share])
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            run()
        events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        rows = [[e.key, f"{e.self_cpu_time_total / total:.0%}", f"{e.count:,}"] for e in events[:8]]
        details.append(f"{name}\n\n{markdown(['operator', 'share of CPU time', 'calls'], rows)}")
    print(markdown(["step", "time", "arithmetic", "best matrix product", "share of the bound"], cells))
    print("\n" + "\n\n".join(details))
    print(f"\n{machine('transformers')}")


if __name__ == "__main__":
    main()
