"""What the benchmarks share: measuring in a fresh process, the machine in words, tables."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any


def in_fresh_process(script: str | Path, *arguments: object, threads: int | None = None) -> Any:
    """Run a script in a new interpreter and read the JSON that it prints as its last line."""
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode} (memory?)")
    return json.loads(result.stdout.strip().splitlines()[-1])


def peak_bytes() -> int:
    """Highest resident size of this process so far (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine(*packages: str) -> str:
    """Processor, cores, versions and date, for the line under a table."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", *packages))
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}, {date.today():%Y-%m-%d}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put_table(page: Path, command: str, text: str) -> None:
    """Put a table into its place in a page: between the mark that names the command and the next end mark."""
    before, begin, _, rest = _around_table(page, command)
    aside = page.with_suffix(".part")
    aside.write_text(f"{before}{begin}\n\n{text}\n\n{rest}")
    aside.replace(page)


def table_cells(page: Path, command: str) -> dict[str, list[str]]:
    """The rows of the table that a page has in that place, by their first cell."""
    lines = _around_table(page, command)[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row for row in rows[2:]}


def _around_table(page: Path, command: str) -> tuple[str, str, str, str]:
    """What is before a table's mark, the mark, the table, and all from its end mark on."""
    before, begin, rest = page.read_text().partition(f"<!-- table: {command} -->")
    text, end, after = rest.partition("<!-- end of table -->")
    if not end:
        raise SystemExit(f"{page}: no place for the table of '{command}'")
    return before, begin, text, end + after


def human_bytes(count: float) -> str:
    """A size in MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def human_seconds(seconds: float) -> str:
    """A time in ms or s."""
    return f"{seconds * 1000:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"
