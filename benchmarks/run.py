"""Speed and memory of ovml against the naive or published way, side by side in one run; prints one table.

Usage: `python benchmarks/run.py [--quick] [--json FILE] [--no-docs] [--only TEXT]`

Each side of each case (`cases.py`) runs in a process of its own, one after the other, on the same inputs and with the
same threads. Time is the median of some calls after one that is not timed (of a long call the first is timed).
Memory is by how much the process's highest resident size (`ru_maxrss`; Linux) grows over that first call; the process
is filled up to its highest size so far before it, so that what was used and given back hides nothing. Of a case that
is a whole command (tagging), time and memory are the command's, from its start to its end. Without `--quick`, `--only`
and `--no-docs` the table is written into docs/benchmarks.md, with machine, versions and date.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import human_bytes, human_seconds, in_fresh_process, machine, markdown, peak_bytes, put_table

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def measure(index: int, side: str, quick: bool) -> dict[str, float]:
    """Seconds and bytes of one side of a case, in a process that does nothing else."""
    from cases import CASES

    case = CASES[index]
    way, repeats = (case.ours, case.repeats[0]) if side == "ours" else (case.theirs, case.repeats[1])
    assert way is not None
    run = way(quick)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    ballast = b"\1" * max(0, peak_bytes() - resident)
    before = peak_bytes()
    start = time.perf_counter()
    found = run()
    seconds = [time.perf_counter() - start]
    if isinstance(found, dict):  # a command, which measured itself
        return found
    memory = peak_bytes() - before
    del ballast
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:] or seconds), "memory": memory}


def rows(quick: bool, only: str) -> list[dict[str, Any]]:
    """Measure every case whose name has the text `only`."""
    from cases import CASES

    found = []
    for index, case in enumerate(CASES):
        name = case.quick_name if quick else case.name
        if not name or only not in name:
            continue
        print(name, file=sys.stderr)
        flags = ["--quick"] if quick else []
        ours = in_fresh_process(__file__, "--measure", index, "ours", *flags)
        theirs = case.theirs and in_fresh_process(__file__, "--measure", index, "theirs", *flags)
        ratio = theirs and theirs["seconds"] / ours["seconds"]
        found.append(
            {"name": name, "against": case.against, "aim": case.aim, "ours": ours, "theirs": theirs, "ratio": ratio}
        )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    cells = []
    for row in found:
        sides = []
        for side in (row["ours"], row["theirs"]):
            sides += [human_seconds(side["seconds"]), human_bytes(side["memory"])] if side else ["", ""]
        ratio = f"{row['ratio']:,.1f}x" if row["ratio"] else ""
        cells.append([row["name"], row["against"], sides[0], sides[2], ratio, sides[1], sides[3], row["aim"]])
    header = ["what", "against", "ours", "theirs", "faster", "ours, memory", "theirs, memory", "aim"]
    return markdown(header, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/benchmarks.md as it is")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name has this text")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(int(args.measure[0]), args.measure[1], args.quick)))
        return
    found = rows(args.quick, args.only)
    text = f"{table(found)}\n\n{machine('torchmetrics', 'transformers')}"
    print(text)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    if not (args.quick or args.no_docs or args.only):
        put_table(DOCS, "python benchmarks/run.py", text)


if __name__ == "__main__":
    main()
