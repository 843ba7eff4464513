"""Step time and memory of training a CLIP of ViT-B/16's size: as it is, compiled, checkpointed, in bfloat16.

Usage: `python benchmarks/execution.py [--quick]`

Every case runs in a fresh process on the CPU with random weights: one training step of a stage, forward and backward.
Memory is by how much the resident size rises within a step above what it was before (Linux: `VmHWM`, set back by
`/proc/self/clear_refs`), after a step on two images or labels; time is the processor's in one thread, the least of
further steps, so that what else the machine does matters little.

The last table is the patch embedding alone, with images and weights in
`channels_last` and without.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import human_bytes, human_seconds, in_fresh_process, machine, markdown

CASES = {"as it is": {}, "gradient_checkpointing": {"gradient_checkpointing": True}, "compile": {"compile": True}}
CASES["bf16-mixed"] = CASES["bf16-mixed, eager attention"] = {}


def least_time(step: Callable[[], object], repeats: int) -> float:
    """Least seconds of processor time of a few calls after a first one."""
    step()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return min(times)


def attention(name: str) -> str:
    """The case's `attn_implementation`."""
    return "eager" if "eager" in name else "sdpa"


def vision_step(name: str, size: int, layers: int) -> Callable[[int], None]:
    """A step of the vision stage: trunk without a graph, the last two blocks with one."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from ovml.encoders import ImageEncoder
    from ovml.encoders.execution import Execution

    torch.manual_seed(0)
    config = CLIPConfig(vision_config={"image_size": size, "patch_size": 16, "num_hidden_layers": layers})
    config._attn_implementation = attention(name)
    encoder = ImageEncoder(CLIPModel(config).eval().requires_grad_(False), Execution(**CASES[name]))
    tail = encoder.tail(2).requires_grad_(True)

    def step(batch: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in name):
            with torch.no_grad():
                hidden_states = encoder.trunk(torch.ones(batch, 3, size, size), 2)
            features = tail(hidden_states)
        (features.global_embeds.float().mean() + features.patch_embeds.float().mean()).backward()

    return step


def prompt_step(name: str, size: int, layers: int) -> Callable[[int], None]:
    """A step of the prompt stage: token embeddings learn in front of a frozen text tower. `size` is ignored."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from ovml.encoders import TextEncoder
    from ovml.encoders.execution import Execution

    torch.manual_seed(0)
    config = CLIPConfig(text_config={"num_hidden_layers": layers})
    config._attn_implementation = attention(name)
    clip = CLIPModel(config).eval().requires_grad_(False)
    encoder = TextEncoder(clip, None, execution=Execution(**CASES[name]))  # type: ignore[arg-type]

    def step(labels: int) -> None:
        embeds = torch.ones(labels, 10, clip.config.text_config.hidden_size, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in name):
            out = encoder.encode(embeds, torch.full((labels,), 10))
        out.float().mean().backward()

    return step


def resident(field: str) -> int:
    """A size of this process in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


STEPS = {"vision": vision_step, "prompt": prompt_step}


def measure(stage: str, name: str, batch: int, size: int, layers: int, repeats: int) -> dict[str, float]:
    """Time and memory of one case."""
    step = STEPS[stage](name, size, layers)
    step(2)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step(batch)
    return {"bytes": resident("VmHWM") - before, "seconds": least_time(lambda: step(batch), repeats)}


def patch_embedding(batch: int, size: int, repeats: int) -> dict[str, float]:
    """Seconds of the patch embedding, by memory format."""
    import torch

    convolution = torch.nn.Conv2d(3, 768, 16, stride=16, bias=False)
    pixels = torch.randn(batch, 3, size, size)
    seconds = {}
    with torch.no_grad():
        for memory_format in (torch.contiguous_format, torch.channels_last):
            module: torch.nn.Module = convolution.to(memory_format=memory_format)  # type: ignore[call-overload]
            images = pixels.contiguous(memory_format=memory_format)
            seconds[str(memory_format).removeprefix("torch.")] = least_time(partial(module, images), repeats)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: that it runs, not how fast")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size, layers, repeats = (32, 3, 1) if arguments.quick else (224, 12, 3)
    batches = {"vision": 4 if arguments.quick else 16, "prompt": 8 if arguments.quick else 128}
    if arguments.case:
        stage, name = arguments.case
        if stage == "patches":
            print(json.dumps(patch_embedding(batches["vision"], size, 4 * repeats)))
        else:
            print(json.dumps(measure(stage, name, batches[stage], size, layers, repeats)))
        return
    flags = ["--quick"] if arguments.quick else []
    here, threads = Path(__file__), 1
    for stage, batch in batches.items():
        print(f"\n{stage} stage, {batch} {'images' if stage == 'vision' else 'labels of 10 tokens'}\n")
        found = {n: in_fresh_process(here, *flags, "--case", stage, n, threads=threads) for n in CASES}
        rows = [
            [n, human_seconds(f["seconds"]), human_bytes(f["bytes"]) if n != "compile" else "-"]
            for n, f in found.items()
        ]
        print(markdown(["", "processor time", "memory"], rows))
    seconds = in_fresh_process(here, *flags, "--case", "patches", "-", threads=threads)
    print(f"\npatch embedding, {batches['vision']} images\n")
    print(markdown(["memory format", "time"], [[n, human_seconds(s)] for n, s in seconds.items()]))
    print(f"\n{machine('transformers')}, {threads} thread")


if __name__ == "__main__":
    main()
