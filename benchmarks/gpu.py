"""Training, tagging and evaluation on one GPU, with what arithmetic expects beside what is measured.

Usage: `python benchmarks/gpu.py [--toy] [--only A,B] [--out DIR] [--limit 460] [--no-docs]`

Random weights in the shape of ViT-B/16 and random data: nothing is downloaded. Each section runs in a process of its
own with a limit of time; `results.json` and `results.md` in `--out` are written again after each row, and the same
command goes on with the sections that have not ended. On a GPU the table is also written into docs/performance.md.

- A, ceilings: copy and matrix products.
- B, stage 1: a step of 64 and of 256 images by precision.
- C, stage 2: label embeddings forward and backward, by labels and texts per batch; the tokenizer.
- D, head; E, ranking loss; F, kernels of attention.
- G, data: loaders with 8 and 16 workers, the way to the device.
- H, inference: tagging of JPEGs, many labels, metrics.
- I, whole: `ovml fit` and the trainer's loop in a distributed world of one.

Columns: time of the device (CUDA events; median of 30 calls after two, 10 where one takes over 50 ms); the rate; time
until the call came back to the host (equal to the first where the host is the limit); kernels launched, their summed
time, waits of the host for the device, most memory.

`--toy` runs every section at tiny size on the CPU, in under a minute: that it runs, not how fast. Times of `--toy` say
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking for a GPU must not start CUDA: children could not use it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from common import machine, markdown, put_table
from gpu_sections.base import FULL, TOY, Section, Sizes
from gpu_sections.ceilings import ceilings
from gpu_sections.children import run_section
from gpu_sections.inference import inference
from gpu_sections.loading import loading
from gpu_sections.measure import cells, header
from gpu_sections.parts import head, kernels, ranking
from gpu_sections.steps import stage_1, stage_2
from gpu_sections.whole import whole

COMMAND = "python benchmarks/gpu.py"
DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
# In the order in which they run: what is least certain, or decides most, first. Seconds are the plan's.
SECTIONS: dict[str, tuple[str, float, Section]] = {
    "A": ("ceilings", 15, ceilings),
    "B": ("stage 1, a training step", 100, stage_1),
    "I": ("whole runs", 90, whole),
    "C": ("stage 2, label embeddings of a training step", 80, stage_2),
    "D": ("the head", 30, head),
    "H": ("tagging and evaluation", 90, inference),
    "G": ("data", 75, loading),
    "E": ("the ranking loss", 15, ranking),
    "F": ("kernels of attention", 10, kernels),
}
ALLOWANCE = 1.3
"""Most time of a section, as a multiple of the plan's."""
START = 20.0
"""Seconds that a process may take to begin."""


def run(names: Iterable[str], sizes: Sizes, device: str, out: Path, limit: float, sections: Any = None) -> Any:
    """Run sections that have not ended in an earlier run, and write the results after each row.

    Args:
        names: Letters of sections.
        sizes: `FULL` or `TOY`; results of other sizes are overwritten.
        device: Name of a torch device.
        out: Folder of the results.
        limit: Seconds after which no section goes on.
        sections: Default: `SECTIONS`.
    """
    sections = SECTIONS if sections is None else sections
    results = _earlier(out, "toy" if sizes.toy else "full", device)
    end = time.monotonic() + limit
    for name in names:
        title, seconds, section = sections[name]
        if results["sections"].get(name, {}).get("ended") == "whole":
            continue
        left = min(seconds * ALLOWANCE + START, end - time.monotonic())
        found: dict[str, Any] = {
            "title": title,
            "rows": [],
            "ended": f"not run: the {limit:.0f} s of --limit were over",
        }
        results["sections"][name] = found
        if left > 0:
            print(f"{name}: {title}", file=sys.stderr)

            def add(row: dict[str, Any], found: dict[str, Any] = found) -> None:
                found["rows"].append(row)
                _write(results, sections, out)

            start = time.monotonic()
            found["device"], found["ended"] = run_section(section, sizes, device, left, add)
            found["seconds"] = round(time.monotonic() - start, 1)
        _write(results, sections, out)
    return results


def _earlier(out: Path, size: str, device: str) -> dict[str, Any]:
    """Results of an earlier run of the same size on the same kind of device, which this one goes on with."""
    file = out / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    same = (results.get("size"), results.get("device")) == (size, device)
    return results if same else {"size": size, "device": device, "sections": {}}


def _write(results: dict[str, Any], sections: Any, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    texts = {"results.json": json.dumps(results, indent=1) + "\n", "results.md": text(results, sections) + "\n"}
    for name, content in texts.items():
        aside = out / f"{name}.part"
        aside.write_text(content)
        aside.replace(out / name)


def text(results: dict[str, Any], sections: Any = None) -> str:
    """The results in Markdown, a table per section in alphabetical order."""
    blocks = []
    for name in sorted(SECTIONS if sections is None else sections):
        if (section := results["sections"].get(name)) is None:
            continue
        table = markdown(header(), [cells(row) for row in section["rows"]])
        ended = "" if section["ended"] == "whole" else f"\n\n{section['ended']}"
        blocks.append(f"### {name}: {section['title']}\n\n{table}{ended}")
    devices = sorted({section["device"] for section in results["sections"].values() if section.get("device")})
    size = "; toy sizes, whose times say nothing" if results["size"] == "toy" else ""
    return "\n\n".join([*blocks, f"{', '.join(devices)}; {machine('lightning', 'transformers')}{size}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="tiny sizes on the CPU: that it runs, not how fast")
    parser.add_argument("--only", metavar="A,B", help=f"sections, of {','.join(sorted(SECTIONS))} (default: all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/gpu, with --toy runs/gpu-toy")
    parser.add_argument("--limit", type=float, default=460, metavar="S", help="seconds for all (default: 460)")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/performance.md as it is")
    args = parser.parse_args()
    names = list(SECTIONS) if args.only is None else args.only.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise SystemExit(f"--only: there is no section {', '.join(unknown)}; they are {', '.join(sorted(SECTIONS))}")
    if not args.toy and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --toy runs every section at tiny size on the CPU")
    for module in ("ovml.classifier", "ovml.inference.tagger", "transformers.models.clip.modeling_clip"):
        import_module(module)  # once, and not in each section
    out = args.out or Path("runs/gpu-toy" if args.toy else "runs/gpu")
    results = run(names, TOY if args.toy else FULL, "cpu" if args.toy else "cuda", out, args.limit)
    print(text(results))
    if not (args.toy or args.no_docs):
        put_table(DOCS, COMMAND, text(results))


if __name__ == "__main__":
    main()
