"""Start-up: whole `ovml` processes against a hand-written script.

Usage: `python benchmarks/startup.py [--repeats 7] [--only TEXT] [--json FILE] [--quick]`

Each command is a process of its own, from the start of Python to its end. The commands take turns, so that other load
of the machine meets all of them; the first turn is not counted. Reported are medians of the user CPU time, which hardly
depends on other load, and of the wall-clock time.

- `ovml tag IMAGE --labels ... --prompt TEMPLATE`: ten labels, one image of 60 x 50 pixels.
- script: loads the same `CLIPModel` with transformers, embeds the same labels in the same template, and ranks them. It
  imports the classes that it needs and no others: no auto classes, no torchvision.
- `ovml --help`, `ovml fit --help`, and a `--prompt` without `{}`, which is an error.

The first two run on `ovml-demo` and on a random CLIP of three blocks. `--quick` takes two turns; `--only`
runs the commands whose name has the text.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import transformers
from common import machine, markdown
from PIL import Image

from ovml.encoders.checkpoints import checkpoint_path, load_tokenizer

LABELS = "red circle,blue star,white heart,fish,moon,green cross,drop,pink square,cat,dog"
TEMPLATE = "a photo of a {}"
AIM = 1.0
"""User CPU seconds of the script, divided by those of `ovml tag`."""
SCRIPT = """
import sys
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizerFast
path, image, labels, template = sys.argv[1:]
labels = labels.split(",")
model = CLIPModel.from_pretrained(path).eval()
tokenizer = CLIPTokenizerFast.from_pretrained(path)
processor = CLIPImageProcessorPil.from_pretrained(path)
texts = tokenizer([template.replace("{}", label) for label in labels], padding=True, return_tensors="pt")
pixels = processor(Image.open(image).convert("RGB"), return_tensors="pt")
with torch.inference_mode():
    scores = model(**texts, **pixels).logits_per_image[0]
for score, label in sorted(zip(scores.tolist(), labels), reverse=True):
    print(f"{score:.4f}  {label}")
"""


def random_clip(folder: Path) -> str:
    """A random CLIP of three blocks with the tokenizer and the sizes of `ovml-demo`."""
    demo = checkpoint_path("ovml-demo")
    config = transformers.CLIPConfig.from_pretrained(demo)
    for tower in (config.vision_config, config.text_config):
        tower.num_hidden_layers = 3
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    load_tokenizer("ovml-demo").save_pretrained(folder)
    transformers.CLIPImageProcessorPil.from_pretrained(demo).save_pretrained(folder)
    return str(folder)


def run(command: list[str], code: int, words: list[str]) -> tuple[float, float]:
    """User CPU seconds and wall-clock seconds of a command, which must print these words."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        output.seek(0)
        said = output.read()
    if os.waitstatus_to_exitcode(status) != code or not all(word in said for word in words):
        raise SystemExit(f"{' '.join(command)}: {said}")
    return usage.ru_utime, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    repeats = 2 if options.quick else options.repeats

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        transformers.utils.logging.disable_progress_bar()
        image = str(folder / "image.png")
        Image.effect_mandelbrot((60, 50), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(image)
        names = LABELS.split(",")
        tag = ["-m", "ovml", "tag", image, "--labels", LABELS, "--top-k", "10"]
        clips = {"ovml-demo": checkpoint_path("ovml-demo"), "random CLIP": random_clip(folder / "clip")}
        commands: dict[str, tuple[list[str], int, list[str]]] = {}
        for clip, path in clips.items():
            commands[f"ovml tag, {clip}"] = ([*tag, "--model", path, "--prompt", TEMPLATE], 0, names)
            commands[f"script, {clip}"] = (["-c", SCRIPT, path, image, LABELS, TEMPLATE], 0, names)
        commands["ovml --help"] = (["-m", "ovml", "--help"], 0, ["usage"])
        commands["ovml fit --help"] = (["-m", "ovml", "fit", "--help"], 0, ["usage"])
        commands["ovml tag, template without {}"] = ([*tag, "--prompt", "a photo"], 2, ["ovml: error", "{}"])

        taken: dict[str, list[tuple[float, float]]] = {key: [] for key in commands if options.only in key}
        for turn in range(repeats + 1):
            for key, rows in taken.items():
                seconds = run(*commands[key])
                if turn > 0:
                    rows.append(seconds)

    found = {
        key: {"user": median(u for u, _ in rows), "wall": median(w for _, w in rows)} for key, rows in taken.items()
    }
    cells = [[key, f"{row['user']:.2f}", f"{row['wall']:.2f}"] for key, row in found.items()]
    print(markdown(["command", "user CPU seconds", "seconds"], cells), end="\n\n")
    for clip in clips:
        if not {f"ovml tag, {clip}", f"script, {clip}"} <= found.keys():
            continue
        ours, script = found[f"ovml tag, {clip}"], found[f"script, {clip}"]
        ratios = {kind: script[kind] / ours[kind] for kind in ("user", "wall")}
        reached = "reached" if ratios["user"] >= AIM else "not reached"
        shown = f"{ratios['user']:.2f} user CPU, {ratios['wall']:.2f} wall"
        print(f"{clip}: script / ovml tag = {shown} (aim: {AIM} user CPU or more; {reached})")
    print(f"\n{machine('transformers')}, {repeats} turns")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
