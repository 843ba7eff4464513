"""Times, launches, waits and memory of a call on a device."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_sections.base import Bench, Case, LeftOutError, Run

LONG = 50.0
"""Milliseconds from which a call is repeated less often."""


def measured(case: Case, bench: Bench) -> dict[str, Any]:
    """Measure a case; an error of its own is its result."""
    row: dict[str, Any] = {"case": case.name, "expected": case.expected}
    run: Run | None = None
    try:
        run = case.prepare()
        found = run()
        row |= found if isinstance(found, dict) else _timed(run, bench)
        if "ms" in row:
            row |= {unit: amount / row["ms"] * 1000 for unit, amount in case.work.items()}
    except LeftOutError as error:
        row["left out"] = str(error)
    except Exception as error:  # of any kind: the other cases must still run
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    run = None
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return row


def _timed(run: Run, bench: Bench) -> dict[str, Any]:
    """Milliseconds of the device and of the host, and what else can be counted, of a call that ran once already."""
    cuda = bench.device.type == "cuda"
    run()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = [_one_call(run, cuda)]
    for _ in range(bench.sizes.repeats if times[0][0] < LONG else min(10, bench.sizes.repeats)):
        times.append(_one_call(run, cuda))
    device, host = (statistics.median(column) for column in zip(*times[1:], strict=True))
    found: dict[str, Any] = {"ms": device, "host ms": host}
    if not cuda:
        return found | {"operators": _operators(run)}
    found["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
    waits = _waits(run)
    return found | {"waits": sum(waits.values()), "wait lines": dict(waits)} | _launches(run)


def _one_call(run: Run, cuda: bool) -> tuple[float, float]:
    """Milliseconds until the device has finished, and until the call came back to the host."""
    if not cuda:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        return seconds * 1000, seconds * 1000
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    run()
    end.record()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    return begin.elapsed_time(end), host * 1000


def _waits(run: Run) -> Counter[str]:
    """How often the host waits for the device in a call, by line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = (w for w in caught if "synchronizing" in str(w.message))
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits)


class _Counter(TorchDispatchMode):
    count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _operators(run: Run) -> int:
    """Operators of a call; on a CPU they stand for what a GPU would launch."""
    counter = _Counter()  # type: ignore[no-untyped-call]
    with counter:
        run()
    return counter.count


def _launches(run: Run) -> dict[str, Any]:
    """Kernels that a call launches, and milliseconds that they run."""
    events = profiled(run, cuda=True)
    launches = sum("LaunchKernel" in event.name for event in events)
    busy = sum(event.self_device_time_total for event in events if is_kernel(event))
    return {"launches": launches, "busy ms": busy / 1000}


def profiled(run: Run, cuda: bool) -> list[Any]:
    """The profiler's events of a call."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        run()
        if cuda:
            torch.cuda.synchronize()
    return list(profiler.events() or ())


def is_kernel(event: Any) -> bool:
    """Whether an event of the profiler is work of the device, rather than a region that someone named."""
    return event.device_type.name == "CUDA" and not event.is_user_annotation


COLUMNS = {
    "ms": "{} ms",
    "host ms": "{} ms",
    "launches": "{}",
    "busy ms": "{} ms",
    "waits": "{}",
    "peak MiB": "{} MiB",
}
TITLES = {"ms": "measured", "host ms": "host", "busy ms": "kernels", "waits": "waits of the host", "peak MiB": "memory"}


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table; what has no column of its own is told beside the time."""
    shown = {name: form.format(_short(row[name])) for name, form in COLUMNS.items() if name in row}
    untold = {"case", "expected", "wait lines", *COLUMNS}
    told = [_told(name, value) for name, value in row.items() if name not in untold]
    shown["ms"] = "; ".join(filter(None, [shown.get("ms", ""), *told]))
    line = row["case"], row["expected"], *(shown.get(name, "") for name in COLUMNS)
    return [cell.replace("|", "/") for cell in line]


def header() -> list[str]:
    """Titles of the columns of `cells`."""
    return ["case", "expected", *(TITLES.get(name, name) for name in COLUMNS)]


def _told(name: str, value: object) -> str:
    return f"{name}: {value}" if isinstance(value, str) else f"{_short(value)} {name}"


def _short(value: object) -> str:
    """Three digits of a number below 1000, and whole numbers above."""
    if not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.3g}"
