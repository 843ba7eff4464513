"""Train the tiny CLIP that ovml ships as `ovml-demo`, on drawn scenes and their captions.

    python examples/pretrain_demo_clip.py

This takes half an hour on two cores; users do not need to run it. All scenes come from the `pretrain` split of the demo
data set. Training starts with scenes of one object and adds objects later, and each scene is paired with the names of
its objects besides its caption. Both make the meaning of words easier to learn than whole captions alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from sklearn.metrics import average_precision_score
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from ovml.data.synthetic import scenes as world
from ovml.data.synthetic.draw import COLOURS, GROUNDS, IMAGE_SIZE, PATTERNS, SHAPES
from ovml.training.precision import multiplies_bfloat16

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
TEMPLATE = "There is a {} in the scene"
WORDS = (
    *SHAPES, *COLOURS, *PATTERNS, *GROUNDS,
    *["a", "an", "the", "of", "in", "on", "and", "with", "there", "is", "no", "some", "many"],
    *["photo", "picture", "image", "drawing", "scene", "background", "object"],
)  # fmt: skip
NAMES = tuple(
    " ".join(filter(None, (pattern, colour, shape)))
    for shape in SHAPES
    for pattern in ("", *PATTERNS)
    for colour in ("", *COLOURS)
)
CONSOLE = Console(log_path=False)

CAPTIONS = (
    "{things}",
    "{things}",
    "there is {things} in the scene",
    "there is {things} in the scene",
    "{things} in the scene",
    "a picture of {things}",
    "a photo of {things}",
    "a drawing with {things}",
    "{things} on a {ground} background",
    "a {ground} picture with {things}",
)


def caption(scene: world.Scene, rng: random.Random) -> str:
    """Writes a caption like those of the web: true, in varied words, and silent about much of the image.

    Args:
        scene: The scene to describe.
        rng: Source of the choices.

    Returns:
        Lower-case text that mentions one to three objects, each by one of its names, perhaps with the
        background, or now and then a single bare word.
    """
    if rng.random() < 0.04:
        thing = rng.choice(scene.objects)
        return rng.choice((thing.shape, thing.colour, scene.ground))
    mentioned = rng.sample(scene.objects, min(len(scene.objects), rng.choices((1, 2, 3), (4, 4, 2))[0]))
    phrases = []
    for thing in mentioned:
        names = world.object_names(thing)
        # People say what is striking: colour and shape most of the time, the bare shape less often.
        weights = (2, 5) if len(names) == 2 else (1, 2, 2, 4)
        phrases.append("a " + rng.choices(names, weights)[0])
    things = phrases[0] if len(phrases) == 1 else f"{' '.join(phrases[:-1])} and {phrases[-1]}"
    return rng.choice(CAPTIONS).format(things=things, ground=scene.ground)


@dataclass
class Scenes:
    """Drawn scenes as tensors.

    Attributes:
        pixels: `[N, 3, H, W]` uint8.
        captions: `[N, C, T]` token ids of `C` captions of each scene.
        names: `[N, 468]` bool, which of `NAMES` fit an object.
        counts: `[N]` objects per scene.
        labels: `[N, L]` bool, the world's labels.
    """

    pixels: Tensor
    captions: Tensor
    names: Tensor
    counts: Tensor
    labels: Tensor


def _draw(job: tuple[int, str, int, int]) -> list[tuple[bytes, list[str], list[int], int, list[int]]]:
    seed, split, start, stop = job
    index = {name: i for i, name in enumerate(NAMES)}
    rows = []
    for i in range(start, stop):
        scene = world.draw_scene(seed, split, i)
        rng = random.Random(f"captions/{seed}/{split}/{i}")
        captions = [caption(scene, rng) for _ in range(8)]
        names = sorted({index[name] for thing in scene.objects for name in world.object_names(thing)})
        rows.append((scene.image.tobytes(), captions, names, len(scene.objects), scene.label_ids))
    return rows


def draw_scenes(tokenizer: CLIPTokenizer, split: str, size: int, seed: int) -> Scenes:
    """Draw the first `size` scenes of a split on all cores."""
    jobs = [(seed, split, start, min(start + 500, size)) for start in range(0, size, 500)]
    pixels = torch.empty(size, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
    names, labels = (
        torch.zeros(size, len(NAMES), dtype=torch.bool),
        torch.zeros(size, len(world.LABELS), dtype=torch.bool),
    )
    counts, captions = torch.zeros(size, dtype=torch.long), []
    with ProcessPoolExecutor() as pool:
        rows = (row for block in pool.map(_draw, jobs) for row in block)
        for i, (image, texts, name_ids, count, label_ids) in enumerate(rows):
            pixels[i] = torch.frombuffer(bytearray(image), dtype=torch.uint8).view(IMAGE_SIZE, IMAGE_SIZE, 3)
            names[i, name_ids], labels[i, label_ids], counts[i] = True, True, count
            captions += texts
    ids = torch.tensor(tokenizer(captions, padding="max_length", max_length=32)["input_ids"], dtype=torch.int16)
    return Scenes(pixels.permute(0, 3, 1, 2).contiguous(), ids.view(size, 8, 32), names, counts, labels)


def build_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """Make a CLIP tokenizer with words or their frequent parts as tokens, and bytes for all other text."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        [" ".join(words)] * 2,
        trainers.BpeTrainer(vocab_size=4000, end_of_word_suffix="</w>", show_progress=False),
    )
    learnt = bpe.model.__getstate__()
    merges = [tuple(pair) for pair in json.loads(learnt)["merges"]]
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=32)


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Make the tiny CLIP with random weights."""
    tower: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "hidden_act": "quick_gelu",
    }
    text = tower | {
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {"num_hidden_layers": 6, "image_size": IMAGE_SIZE, "patch_size": 12}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def prepare(pixels: Tensor) -> Tensor:
    """Normalise uint8 pixels like the packaged image processor."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def augment(pixels: Tensor) -> Tensor:
    """Flip half of the images and shift all by the same few pixels."""
    flip = torch.rand(len(pixels), 1, 1, 1) < 0.5
    pixels = torch.where(flip, pixels.flip(-1), pixels)
    top, left = (int(torch.randint(0, 9, ())) for _ in range(2))
    return F.pad(pixels.float(), (4, 4, 4, 4), "reflect")[..., top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]


def embed_texts(model: CLIPModel, ids: Tensor, end: int) -> Tensor:
    """Return L2-normalised text embeddings."""
    longest = int((ids == end).int().argmax(1).max()) + 1
    return F.normalize(model.get_text_features(input_ids=ids[:, :longest]).pooler_output.float(), dim=-1)


def contrast(logits: Tensor, positive: Tensor) -> Tensor:
    """Symmetric contrastive loss; the positives of a row or column share its weight evenly."""

    def one_way(logits: Tensor, positive: Tensor) -> Tensor:
        share = positive.float()
        kept = share.sum(1) > 0
        share = share[kept] / share[kept].sum(1, keepdim=True)
        return -(share * logits[kept].log_softmax(1)).sum(1).mean()

    return (one_way(logits, positive) + one_way(logits.T, positive.T)) / 2


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer: CLIPTokenizer, scenes: Scenes) -> dict[str, float]:
    """Mean average precision of the cosine similarity, for seen and for unseen labels."""
    model.eval()
    texts = tokenizer([TEMPLATE.format(label) for label in world.LABELS], padding=True, return_tensors="pt")
    labels = embed_texts(model, texts["input_ids"], tokenizer.eos_token_id)
    images = [model.get_image_features(prepare(part)).pooler_output for part in scenes.pixels.split(250)]
    scores = (F.normalize(torch.cat(images), dim=-1) @ labels.T).numpy()
    truth = scenes.labels.numpy()
    values = np.array([average_precision_score(truth[:, i], scores[:, i]) for i in range(len(world.LABELS))])
    seen = len(world.SEEN_LABELS)
    model.train()
    return {
        "seen": float(values[:seen].mean()),
        "unseen": float(values[seen:].mean()),
        "chance": float(truth.mean()),
    }


def save(model: CLIPModel, tokenizer: CLIPTokenizer, readme: str, out: Path) -> None:
    """Write the checkpoint under another name, then rename it to `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=out.name, dir=out.parent))
    aside.chmod(0o755)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    for part in (model, tokenizer, processor):
        part.save_pretrained(aside)
    (aside / "README.md").write_text(readme, encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    aside.rename(out)


def card(args: argparse.Namespace, facts: dict[str, str]) -> str:
    """The README that goes with the weights."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
---
# ovml-demo

A tiny CLIP for ovml's demos and tests. It knows nothing but the drawn world of `ovml.data.synthetic.scenes`
({len(SHAPES)} shapes, {len(COLOURS)} colours, {len(PATTERNS)} patterns). Its random initial weights were trained
on {args.scenes} drawn scenes and their captions; no photograph and no downloaded weight went into it. Made by

    python examples/pretrain_demo_clip.py --seed {args.seed} --steps {args.steps} --scenes {args.scenes}

| fact | value |
|---|---|
{rows}
"""


def train(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(WORDS)
    split = [word for word in WORDS if len(tokenizer(word)["input_ids"]) != 3]
    assert not split, f"words that are not one token: {split}"
    model = build_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    CONSOLE.log(f"{parameters:,} parameters, {len(tokenizer)} tokens; drawing {args.scenes} scenes")
    scenes = draw_scenes(tokenizer, "pretrain", args.scenes, args.seed)
    validation = draw_scenes(tokenizer, "validation", args.eval_scenes, args.seed)
    names_bare = torch.tensor(tokenizer(list(NAMES), padding="max_length", max_length=32)["input_ids"])
    in_template = [TEMPLATE.format(name) for name in NAMES]
    names_full = torch.tensor(tokenizer(in_template, padding="max_length", max_length=32)["input_ids"])
    CONSOLE.log(f"drawn after {time.perf_counter() - started:.0f} s")

    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * min(step / args.steps, 1.0))),
    )
    # Curriculum: until each share of the training, scenes have at most this many objects.
    pools = [(0.12, torch.where(scenes.counts <= 1)[0]), (0.35, torch.where(scenes.counts <= 3)[0])]
    everything = torch.arange(args.scenes)
    running: list[tuple[float, float]] = []
    first = 0
    if args.state and args.state.exists():
        state = torch.load(args.state, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        first = state["step"]
        CONSOLE.log(f"resuming after step {first}")
    model.train()
    for step in range(first, args.steps):
        pool = next((p for share, p in pools if step < share * args.steps), everything)
        rows = pool[torch.randint(len(pool), (args.batch_size,))]
        captions = scenes.captions[rows, torch.randint(8, (args.batch_size,))].long()
        present = scenes.names[rows]
        candidates = torch.where(present.any(0))[0]
        candidates = candidates[torch.randperm(len(candidates))[: args.batch_size // 2]]
        names = (names_full if step % 2 else names_bare)[candidates]
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16()):
            pixels = prepare(augment(scenes.pixels[rows]))
            images = F.normalize(model.get_image_features(pixels).pooler_output.float(), dim=-1)
            end = tokenizer.eos_token_id
            texts, named = embed_texts(model, captions, end), embed_texts(model, names, end)
        scale = model.logit_scale.exp().clamp(max=100)
        same = (captions[:, None] == captions[None]).all(-1)
        caption_loss = contrast(scale * images @ texts.T, same)
        name_loss = contrast(scale * images @ named.T, present[:, candidates])
        loss = caption_loss + name_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = [*running[-99:], (caption_loss.item(), name_loss.item())]
        if (step + 1) % 100 == 0:
            minutes = (time.perf_counter() - started) / 60
            CONSOLE.log(f"step {step + 1}, {minutes:.1f} min, losses {np.mean(running, axis=0).round(3)}")
        if (step + 1) % args.eval_every == 0 or step + 1 == args.steps:
            scored = zero_shot(model, tokenizer, validation)
            caption_mean, name_mean = np.mean(running, axis=0)
            minutes = (time.perf_counter() - started) / 60
            CONSOLE.log(
                f"step {step + 1}, {minutes:.1f} min, losses {caption_mean:.3f} {name_mean:.3f}, mAP seen"
                f" {scored['seen']:.3f} unseen {scored['unseen']:.3f}, scale {scale.item():.1f}"
            )
            facts = {
                "parameters": f"{parameters:,}",
                "steps done, batch size, learning rate": f"{step + 1}, {args.batch_size}, {args.lr}",
                "wall-clock minutes": f"{minutes:.1f} on {os.cpu_count()} cores ({platform.machine()})",
                "caption loss, name loss (last 100 steps)": f"{caption_mean:.3f}, {name_mean:.3f}",
                f"zero-shot mAP on {args.eval_scenes:,} validation scenes, seen labels": f"{scored['seen']:.3f}",
                "the same, unseen labels": f"{scored['unseen']:.3f}",
                "chance, all labels": f"{scored['chance']:.3f}",
                "world version": str(world.WORLD_VERSION),
                "torch, transformers": f"{torch.__version__}, {transformers.__version__}",
            }
            save(model, tokenizer, card(args, facts), args.out)
            if args.state:
                parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save(state | {"rng": torch.get_rng_state(), "step": step + 1}, f"{args.state}.part")
                os.replace(f"{args.state}.part", args.state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(world.__file__).parents[2] / "resources" / "ovml-demo")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and scenes")
    parser.add_argument("--scenes", type=int, default=40_000, help="number of scenes")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--eval-every", type=int, default=500, help="steps between evaluations, each saved to --out")
    parser.add_argument("--eval-scenes", type=int, default=1000, help="scenes of an evaluation")
    parser.add_argument("--state", type=Path, help="file for resuming an interrupted run")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
