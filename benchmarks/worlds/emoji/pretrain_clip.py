"""Train a tiny CLIP for the emoji data set, on captions of scenes drawn with this machine's emoji font.

    apt install fonts-noto-color-emoji && pip install emoji scikit-learn
    export PYTHONPATH=benchmarks:examples
    python -m worlds.emoji.pretrain_clip --out emoji-clip
    ovml fit --config benchmarks/worlds/emoji.yaml --model.clip emoji-clip

The result is a CLIP folder like any other; ovml does not ship it. As in `examples/pretrain_demo_clip.py`, training
starts with scenes of one object and adds objects later, and each scene is paired with the names of its objects besides
its caption.
The vision tower starts with the weights of `ovml-demo`, which knows edges, colours and clutter. All scenes come from
the data set's `pretrain` split.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pretrain_demo_clip as demo
import torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from ovml import UserError
from ovml.encoders.checkpoints import load_clip
from ovml.training.precision import multiplies_bfloat16
from worlds.emoji.names import emoji_names, is_unseen
from worlds.emoji.pictures import emoji_pictures
from worlds.emoji.scenes import CAPTIONS, EmojiWorld

CONSOLE = Console(log_path=False)
NUM_CAPTIONS = 4


@dataclass
class Scenes:
    """Drawn scenes as tensors.

    Attributes:
        pixels: `[N, 3, H, W]` uint8, in the size of the tower's images.
        captions: `[N, C, T]` token ids of `C` captions of each scene.
        present: `[N, L]` bool, the names of its objects.
    """

    pixels: Tensor
    captions: Tensor
    present: Tensor


def _draw(job: tuple[EmojiWorld, str, int, int]) -> list[tuple[bytes, list[str], list[int]]]:
    world, split, start, stop = job
    rows = []
    for i in range(start, stop):
        scene = world.scene(split, i)
        rng = random.Random(f"captions/{world.seed}/{split}/{i}")
        captions = [world.caption(scene, rng) for _ in range(NUM_CAPTIONS)]
        image = scene.image.resize((demo.SIDE, demo.SIDE), Image.Resampling.BICUBIC)
        rows.append((image.tobytes(), captions, scene.label_ids))
    return rows


def draw_scenes(tokenizer: CLIPTokenizer, world: EmojiWorld, split: str, size: int) -> Scenes:
    """Draws the first `size` scenes of a split on all cores."""
    jobs = [(world, split, start, min(start + 500, size)) for start in range(0, size, 500)]
    pixels = torch.empty(size, demo.SIDE, demo.SIDE, 3, dtype=torch.uint8)
    present = torch.zeros(size, len(world.names), dtype=torch.bool)
    captions: list[str] = []
    with ProcessPoolExecutor() as pool:
        rows = (row for block in pool.map(_draw, jobs) for row in block)
        for i, (image, texts, label_ids) in enumerate(rows):
            pixels[i] = torch.frombuffer(bytearray(image), dtype=torch.uint8).view(demo.SIDE, demo.SIDE, 3)
            present[i, label_ids] = True
            captions += texts
    ids = tokenize(tokenizer, captions).short().view(size, NUM_CAPTIONS, -1)
    return Scenes(pixels.permute(0, 3, 1, 2).contiguous(), ids, present)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids `[N, 32]`."""
    return torch.tensor(tokenizer(texts, padding="max_length", truncation=True, max_length=32)["input_ids"])


def shift(pixels: Tensor) -> Tensor:
    """Shift all images by the same few pixels; they are not flipped, because a mirrored emoji may have another name."""
    top, left = (int(torch.randint(0, 9, ())) for _ in range(2))
    return F.pad(pixels.float(), (4, 4, 4, 4), "reflect")[..., top : top + demo.SIDE, left : left + demo.SIDE]


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer: CLIPTokenizer, names: tuple[str, ...], scenes: Scenes) -> dict[str, float]:
    """Mean average precision of the cosine similarity, for the seen and the unseen names that occur."""
    model.eval()
    texts = tokenize(tokenizer, [demo.TEMPLATE.format(name) for name in names])
    labels = demo.embed_texts(model, texts, tokenizer.eos_token_id)
    images = [model.get_image_features(demo.prepare(part)).pooler_output for part in scenes.pixels.split(250)]
    scores = (F.normalize(torch.cat(images), dim=-1) @ labels.T).numpy()
    model.train()
    truth = scenes.present.numpy()
    values = {i: average_precision_score(truth[:, i], scores[:, i]) for i in np.flatnonzero(truth.any(0))}
    unseen = {i for i in values if is_unseen(names[i])}
    return {
        "seen": float(np.mean([value for i, value in values.items() if i not in unseen])),
        "unseen": float(np.mean([value for i, value in values.items() if i in unseen])),
        "chance": float(truth[:, list(values)].mean()),
    }


def card(args: argparse.Namespace, facts: dict[str, str]) -> str:
    """The README that goes with the weights."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""# A tiny CLIP of emoji scenes

It knows little besides the emoji scenes of ovml. Its text tower started from random weights, its vision tower from
{"random weights too" if args.start == "random" else f"that of `{args.start}`"}. Trained on {args.scenes} scenes,
drawn with {args.font or "Noto Color Emoji"}, and their captions. Made by `worlds.emoji.pretrain_clip`.

| fact | value |
|---|---|
{rows}
"""


def train(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    emoji = emoji_names(args.num_names)
    world = EmojiWorld(tuple(emoji), emoji_pictures(args.font, tuple(emoji.values()), args.cache_dir), args.seed)
    words = re.findall(r"[a-z]+", " ".join([*world.names, *CAPTIONS, demo.TEMPLATE]).lower())
    tokenizer = demo.build_tokenizer(words)
    model = demo.build_model(tokenizer)
    if args.start != "random":
        try:
            model.vision_model.load_state_dict(load_clip(args.start).vision_model.state_dict())
        except RuntimeError as error:
            raise UserError(f"--start: the vision tower of {args.start!r} has another shape; give ovml-demo") from error
    if half := multiplies_bfloat16():
        model.set_attn_implementation("eager")  # in bfloat16 on a CPU the fused one's backward pass is slower
    parameters = sum(p.numel() for p in model.parameters())
    CONSOLE.log(f"{len(emoji):,} names, {parameters:,} parameters; drawing {args.scenes} scenes")
    scenes = draw_scenes(tokenizer, world, "pretrain", args.scenes)
    validation = draw_scenes(tokenizer, world, "validation", args.eval_scenes)
    bare = tokenize(tokenizer, list(world.names))
    in_template = tokenize(tokenizer, [demo.TEMPLATE.format(name) for name in world.names])
    CONSOLE.log(f"drawn after {time.perf_counter() - started:.0f} s")

    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * min(step / args.steps, 1.0)))
    )
    # Curriculum: until each share of the training, scenes have at most this many objects.
    counts = scenes.present.sum(1)
    pools = [(share, torch.where(counts <= most)[0]) for share, most in ((0.3, 1), (0.6, 3))]
    everything, end = torch.arange(args.scenes), tokenizer.eos_token_id
    running: list[tuple[float, float]] = []
    model.train()
    for step in range(args.steps):
        pool = next((pool for share, pool in pools if step < share * args.steps and len(pool)), everything)
        rows = pool[torch.randint(len(pool), (args.batch_size,))]
        captions = scenes.captions[rows, torch.randint(NUM_CAPTIONS, (args.batch_size,))].long()
        present = scenes.present[rows]
        shown = torch.where(present.any(0))[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            pixels = demo.prepare(shift(scenes.pixels[rows]))
            images = F.normalize(model.get_image_features(pixels).pooler_output.float(), dim=-1)
            texts = demo.embed_texts(model, captions, end)
            named = demo.embed_texts(model, (in_template if step % 2 else bare)[shown], end)
        scale = model.logit_scale.exp().clamp(max=100)
        same = (captions[:, None] == captions[None]).all(-1)
        caption_loss = demo.contrast(scale * images @ texts.T, same)
        name_loss = demo.contrast(scale * images @ named.T, present[:, shown])
        optimizer.zero_grad(set_to_none=True)
        (caption_loss + name_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = [*running[-99:], (caption_loss.item(), name_loss.item())]
        minutes = (time.perf_counter() - started) / 60
        losses = "{:.3f}, {:.3f}".format(*np.mean(running, axis=0))
        if (step + 1) % 100 == 0:
            CONSOLE.log(f"step {step + 1}, {minutes:.1f} min, caption loss, name loss {losses}")
        if (step + 1) % args.eval_every == 0 or step + 1 == args.steps:
            scored = zero_shot(model, tokenizer, world.names, validation)
            CONSOLE.log(f"step {step + 1}, mAP " + ", ".join(f"{name} {value:.4f}" for name, value in scored.items()))
            facts = {
                "names, parameters": f"{len(emoji):,}, {parameters:,}",
                "steps done, batch size, learning rate": f"{step + 1}, {args.batch_size}, {args.lr}",
                "wall-clock minutes; products in": f"{minutes:.1f}; {'bfloat16' if half else 'float32'}",
                "caption loss, name loss (last 100 steps)": losses,
                f"zero-shot mAP on {args.eval_scenes:,} validation scenes, seen names": f"{scored['seen']:.4f}",
                "the same, unseen names; chance": f"{scored['unseen']:.4f}; {scored['chance']:.4f}",
            }
            demo.save(model, tokenizer, card(args, facts), args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("emoji-clip"))
    parser.add_argument("--again", action="store_true", help="train again even if --out exists")
    parser.add_argument("--font", help="font or folder of images (default: Noto Color Emoji in its usual folder)")
    parser.add_argument(
        "--start", default="ovml-demo", help="CLIP whose vision tower initialises this one's; or random"
    )
    parser.add_argument("--num-names", type=int, help="number of names (default: all)")
    parser.add_argument("--cache-dir", help="folder for extracted emoji (default: that of `datasets`)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and scenes")
    parser.add_argument("--scenes", type=int, default=40_000, help="number of scenes")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--eval-every", type=int, default=500, help="steps between evaluations, each saved to --out")
    parser.add_argument("--eval-scenes", type=int, default=1000, help="number of scenes per evaluation")
    args = parser.parse_args()
    if args.out.exists() and not args.again:
        CONSOLE.log(f"{args.out} exists; its README says how it was trained, and --again trains it again")
        return
    try:
        train(args)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
