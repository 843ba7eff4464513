"""Time and peak memory of the ranking loss against the all-pairs form, forward and backward.

Usage: `python benchmarks/ranking_loss.py [--quick] [--json FILE]`

Ours is `ovml.losses.ranking_loss`. Theirs is the all-pairs form of the published code, written here again: it
builds `[B, L, L]` tensors of the mask, the gaps, their product, the hinge and its sign.

How both are measured, by the same code, one after the other in the same run:

- Each side of each case runs in a fresh process, on the same inputs (normal scores, 1 label in 100 present,
  the rest absent), with the same number of threads, forward and backward together.
- Memory: after one call on an input of a few labels, which loads what torch loads late, the process is filled
  up to its highest resident size so far. The peak memory is by how much `ru_maxrss` (`resource.getrusage`)
  then grows over one call; it is good to a few hundred KiB.
- Time: the median of several further calls, that first one being the warm-up.
- Before a table is printed, values and gradients of both are compared on a smaller batch.

Linux only (`ru_maxrss` in KiB, `/proc/self/statm`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import in_fresh_process, peak_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# Batch, labels, repeats of ours, repeats of theirs. NUS-WIDE has 925 seen labels, Open Images 7186.
CASES = [(64, 925, 20, 5), (8, 7186, 20, 3)]
QUICK_CASES = [(16, 300, 10, 5), (4, 1000, 10, 3)]


def all_pairs(logits: Tensor, targets: Tensor) -> Tensor:
    """The published form; targets 1 present, 0 absent, -1 unknown."""
    present, absent = (targets == 1).to(logits.dtype), (targets == 0).to(logits.dtype)
    mask = present.unsqueeze(1) * absent.unsqueeze(2)
    gaps = 1 + (logits * absent).unsqueeze(2) - (logits * present).unsqueeze(1)
    hinge = (mask * gaps).clamp(min=0)
    violating = hinge.sign().sum(1).sum(1)
    return (hinge.sum(1).sum(1) / (violating + 1e-8)).mean()


def inputs(batch: int, labels: int) -> tuple[Tensor, Tensor]:
    """Scores and targets, the same for both sides."""
    import torch

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, labels, generator=generator)
    return logits, (torch.rand(batch, labels, generator=generator) < 0.01).long()


def once(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward; value and gradient."""
    logits = logits.detach().requires_grad_()
    value = loss(logits, targets)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


def measure(side: str, batch: int, labels: int, repeats: int) -> dict[str, Any]:
    """Seconds and bytes of one side, in a process that did nothing else."""
    from ovml.losses import ranking_loss

    loss = ranking_loss if side == "ours" else all_pairs
    once(loss, *inputs(2, 8))
    pair = inputs(batch, labels)

    # What was used and given back since the start would hide as much of the call's own memory.
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    ballast = b"\1" * max(0, peak_bytes() - resident)
    before = peak_bytes()
    value, _ = once(loss, *pair)
    memory = peak_bytes() - before
    del ballast

    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        once(loss, *pair)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "memory": memory, "loss": float(value)}


def check() -> dict[str, float]:
    """Largest difference between the two sides, in value and in gradient."""
    import torch

    from ovml.losses import ranking_loss

    logits, targets = inputs(4, 500)
    targets[torch.rand(targets.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = -1
    ours, theirs = once(ranking_loss, logits, targets), once(all_pairs, logits, targets)
    return {
        "value": float((ours[0] - theirs[0]).abs()),
        "gradient": float((ours[1] - theirs[1]).abs().max()),
        "threads": torch.get_num_threads(),
    }


def run(cases: list[tuple[int, int, int, int]]) -> list[dict[str, Any]]:
    """Measure all cases; one row for each."""
    rows = []
    for batch, labels, our_repeats, their_repeats in cases:
        ours = in_fresh_process(__file__, "--measure", "ours", batch, labels, our_repeats)
        theirs = in_fresh_process(__file__, "--measure", "theirs", batch, labels, their_repeats)
        rows.append(
            {
                "name": f"ranking loss, {batch} images, {labels} labels",
                "ours": ours["seconds"],
                "theirs": theirs["seconds"],
                "ratio": theirs["seconds"] / ours["seconds"],
                "unit": "s",
                "ours_peak_memory_bytes": ours["memory"],
                "theirs_peak_memory_bytes": theirs["memory"],
                "memory_ratio": theirs["memory"] / max(ours["memory"], 1),
                "loss_difference": abs(ours["loss"] - theirs["loss"]),
            }
        )
    return rows


def show(rows: list[dict[str, Any]], agreement: dict[str, float]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Ranking loss, forward and backward", caption_justify="left")
    for name in ("case", "ours", "all pairs", "ratio", "ours, peak", "all pairs, peak", "ratio"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for row in rows:
        table.add_row(
            row["name"].removeprefix("ranking loss, "),
            f"{row['ours'] * 1e3:,.2f} ms",
            f"{row['theirs'] * 1e3:,.1f} ms",
            f"{row['ratio']:,.0f}x",
            f"{row['ours_peak_memory_bytes'] / 2**20:,.1f} MiB",
            f"{row['theirs_peak_memory_bytes'] / 2**20:,.0f} MiB",
            f"{row['memory_ratio']:,.0f}x",
        )
    table.caption = (
        f"{agreement['threads']:.0f} threads, {os.cpu_count()} cores; largest difference of values "
        f"{agreement['value']:.1e}, of gradients {agreement['gradient']:.1e}"
    )
    console = Console()
    console = console if console.is_terminal else Console(width=110)
    console.print(table)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small cases, a few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        side, *numbers = args.measure
        print(json.dumps(measure(side, *map(int, numbers))))
        return
    # This process must stay small until here: a child's `ru_maxrss` starts at the size it was forked with.
    rows = run(QUICK_CASES if args.quick else CASES)
    show(rows, check())
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
