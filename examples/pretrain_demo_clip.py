"""Train the tiny CLIP that ovml ships as `ovml-demo`, on drawn scenes and their captions.

    mkdir former && git archive 2633d03:src/ovml/resources/ovml-demo | tar x -C former
    python examples/pretrain_demo_clip.py --start former

Users do not need to run it. The weights start from those of the former `ovml-demo`, which was trained from random
weights on scenes of the same shapes, colours and patterns, drawn in another way (world version 1). All scenes come from
the `pretrain` split of the demo data set. Besides its caption, each scene is paired with the names of its objects, and
the patches of each object with its names: both make the meaning of words easier to learn than whole captions alone.
An interrupted run goes on with the same `--state FILE`.
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
from PIL import Image
from rich.console import Console
from sklearn.metrics import average_precision_score
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from ovml.data.synthetic import scenes as world
from ovml.data.synthetic.draw import COLOURS, IMAGE_SIZE, PATTERNS, SHAPES, Thing
from ovml.data.synthetic.grounds import GROUNDS
from ovml.training.precision import multiplies_bfloat16

SIDE, PATCH, WIDTH = 96, 16, 128  # scenes are scaled down to the size of the tower's images
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
MOST = 6
CURRICULUM = ((0.15, 3), (1.0, MOST))
"""Until each share of the training, scenes have at most this many objects."""
FORMER = "2633d03:src/ovml/resources/ovml-demo"
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
        objects: `[N, 6, 468]` bool, which of `NAMES` fit each object; no name where there are fewer objects.
        places: `[N, 6, 3]` centre and radius of each object, as shares of the image's side.
        labels: `[N, L]` bool, the world's labels.
    """

    pixels: Tensor
    captions: Tensor
    objects: Tensor
    places: Tensor
    labels: Tensor


def _draw(job: tuple[int, str, int, int]) -> list[tuple[bytes, list[str], list[Thing], list[int]]]:
    seed, split, start, stop = job
    rows = []
    for i in range(start, stop):
        scene = world.draw_scene(seed, split, i)
        rng = random.Random(f"captions/{seed}/{split}/{i}")
        captions = [caption(scene, rng) for _ in range(8)]
        image = scene.image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        rows.append((image.tobytes(), captions, list(scene.objects), scene.label_ids))
    return rows


def draw_scenes(tokenizer: CLIPTokenizer, split: str, size: int, seed: int) -> Scenes:
    """Draw the first `size` scenes of a split on all cores."""
    jobs = [(seed, split, start, min(start + 500, size)) for start in range(0, size, 500)]
    index = {name: i for i, name in enumerate(NAMES)}
    pixels = torch.empty(size, SIDE, SIDE, 3, dtype=torch.uint8)
    objects = torch.zeros(size, MOST, len(NAMES), dtype=torch.bool)
    places = torch.zeros(size, MOST, 3)
    labels = torch.zeros(size, len(world.LABELS), dtype=torch.bool)
    captions: list[str] = []
    with ProcessPoolExecutor() as pool:
        rows = (row for block in pool.map(_draw, jobs) for row in block)
        for i, (image, texts, things, label_ids) in enumerate(rows):
            pixels[i] = torch.frombuffer(bytearray(image), dtype=torch.uint8).view(SIDE, SIDE, 3)
            labels[i, label_ids] = True
            captions += texts
            for j, thing in enumerate(things):
                objects[i, j, [index[name] for name in world.object_names(thing)]] = True
                places[i, j] = torch.tensor([thing.x, thing.y, thing.radius]) / IMAGE_SIZE
    ids = torch.tensor(tokenizer(captions, padding="max_length", max_length=32)["input_ids"], dtype=torch.int16)
    return Scenes(pixels.permute(0, 3, 1, 2).contiguous(), ids.view(size, 8, 32), objects, places, labels)


def build_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """Make a CLIP tokenizer with words or their frequent parts as tokens, and bytes for all other text."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = alphabet + [letter + "</w>" for letter in alphabet]  # listed, so that ties end alike in each run
    options: dict[str, Any] = {
        "vocab_size": 4000 + len(letters),
        "special_tokens": letters,
        "end_of_word_suffix": "</w>",
    }
    bpe.train_from_iterator([" ".join(words)] * 2, trainers.BpeTrainer(**options, show_progress=False))
    learnt = bpe.model.__getstate__()
    merges = [tuple(pair) for pair in json.loads(learnt)["merges"]]
    tokens = letters + ["".join(pair) for pair in merges]
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
    vision = tower | {"num_hidden_layers": 6, "image_size": SIDE, "patch_size": PATCH}
    vision |= {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128, logit_scale_init_value=3.2))


def warm_start(model: CLIPModel, tokenizer: CLIPTokenizer, folder: str) -> None:
    """Take the weights of another tiny CLIP: its patches are resized, and words that it does not know stay random."""
    state = CLIPModel.from_pretrained(folder).state_dict()
    patches, words = "vision_model.embeddings.patch_embedding.weight", "text_model.embeddings.token_embedding.weight"
    share = (state[patches].shape[-1] / PATCH) ** 2
    state[patches] = F.interpolate(state[patches], size=(PATCH, PATCH), mode="bicubic", antialias=True) * share
    known, table = CLIPTokenizer.from_pretrained(folder).get_vocab(), model.state_dict()[words].clone()
    for token, position in tokenizer.get_vocab().items():
        if token in known:
            table[position] = state[words][known[token]]
    model.load_state_dict({**state, words: table})


def prepare(pixels: Tensor) -> Tensor:
    """Normalise uint8 pixels like the packaged image processor."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def augment(pixels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Flip half of the images and shift all by the same few pixels; the places of their objects too."""
    flip = torch.rand(len(pixels), 1, 1, 1) < 0.5
    pixels = torch.where(flip, pixels.flip(-1), pixels).float()
    top, left = (int(torch.randint(0, 13, ())) for _ in range(2))
    pixels = F.pad(pixels, (6, 6, 6, 6), "reflect")[..., top : top + SIDE, left : left + SIDE]
    x, y, radius = places.unbind(-1)
    x = torch.where(flip[:, :, 0, 0], 1 - x, x) + (6 - left) / SIDE
    places = torch.stack([x, y + (6 - top) / SIDE, radius], -1)
    return pixels, places


def embed_tokens(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Return L2-normalised embeddings `[B, 1 + P, D]` of the class token and of each patch."""
    tokens = model.vision_model.post_layernorm(model.vision_model(pixels).last_hidden_state)
    return F.normalize(model.visual_projection(tokens).float(), dim=-1)


def embed_objects(patches: Tensor, places: Tensor) -> Tensor:
    """Return L2-normalised means `[B, O, D]` of the patches where each object is."""
    grid = math.isqrt(patches.shape[1])
    middles = (torch.arange(grid) + 0.5) / grid
    x, y, radius = places.unsqueeze(2).unbind(-1)
    distance = (middles.repeat(grid) - x) ** 2 + (middles.repeat_interleave(grid) - y) ** 2
    weights = (-distance / (2 * (0.6 * radius).clamp(min=0.4 / grid) ** 2)).softmax(-1)
    return F.normalize(weights @ patches, dim=-1)


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
    """Scores by cosine similarity: P@3 over all labels, mAP of seen and of unseen ones, and chance."""
    model.eval()
    texts = tokenizer([TEMPLATE.format(label) for label in world.LABELS], padding=True, return_tensors="pt")
    labels = embed_texts(model, texts["input_ids"], tokenizer.eos_token_id)
    images = [model.get_image_features(prepare(part)).pooler_output for part in scenes.pixels.split(250)]
    scores = (F.normalize(torch.cat(images), dim=-1) @ labels.T).numpy()
    truth = scenes.labels.numpy()
    values = np.array([average_precision_score(truth[:, i], scores[:, i]) for i in range(len(world.LABELS))])
    seen = len(world.SEEN_LABELS)
    model.train()
    top = np.argsort(-scores, axis=1)[:, :3]
    return {
        "P@3": float(np.take_along_axis(truth, top, 1).mean()),
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
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
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
    command = f"python examples/pretrain_demo_clip.py --seed {args.seed} --steps {args.steps} --scenes {args.scenes}"
    weights = "Its random initial weights were trained"
    if args.start:
        command = f"mkdir former && git archive {FORMER} | tar x -C former\n    {command} --start former"
        weights = f"""Its weights start from those of the former `ovml-demo`
(`{FORMER}`: random weights trained on 40,000 scenes of world version 1,
which have the same words), and were trained"""
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
---
# ovml-demo

A tiny CLIP for ovml's demos and tests. It knows nothing but the drawn world of `ovml.data.synthetic.scenes`
({len(SHAPES)} shapes, {len(COLOURS)} colours, {len(PATTERNS)} patterns). {weights}
on {args.scenes:,} drawn scenes, their captions, and the names and places of their objects. No photograph and no
downloaded weight went into it. Made by

    {command}

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
    if args.start:
        warm_start(model, tokenizer, args.start)
    if multiplies_bfloat16():
        model.set_attn_implementation("eager")  # in bfloat16 on a CPU the fused one's backward pass is slower
    parameters = sum(p.numel() for p in model.parameters())
    CONSOLE.log(f"{parameters:,} parameters, {len(tokenizer)} tokens; drawing {args.scenes} scenes")
    drawn = args.state and args.state.with_suffix(".scenes")
    if drawn and drawn.exists():
        scenes = Scenes(**torch.load(drawn, weights_only=True, mmap=True))
    else:
        scenes = draw_scenes(tokenizer, "pretrain", args.scenes, args.seed)
        if drawn:
            torch.save(vars(scenes), f"{drawn}.part")
            os.replace(f"{drawn}.part", drawn)
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
        lambda step: min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * min(step / args.steps, 1.0))),
    )
    counts = scenes.objects.any(-1).sum(1)
    pools = {most: torch.where(counts <= most)[0] for _, most in CURRICULUM}
    running: list[list[float]] = []
    first, minutes_before = 0, 0.0
    if args.state and args.state.exists():
        state = torch.load(args.state, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        first, minutes_before, running = state["step"], state["minutes"], state["running"]
        CONSOLE.log(f"resuming after step {first}")

    def minutes() -> float:
        return minutes_before + (time.perf_counter() - started) / 60

    def evaluate_and_save(step: int) -> None:
        scored = zero_shot(model, tokenizer, validation)
        losses = ", ".join(f"{loss:.3f}" for loss in np.mean(running, axis=0))
        figures = ", ".join(f"{name} {value:.3f}" for name, value in scored.items())
        CONSOLE.log(f"step {step}, {minutes():.1f} min, losses {losses}, {figures}")
        facts = {
            "parameters": f"{parameters:,}",
            "steps done, batch size, learning rate": f"{step}, {args.batch_size}, {args.lr}",
            "wall-clock minutes": f"{minutes():.1f} on {os.cpu_count()} cores ({platform.machine()})",
            "losses of captions, names, patches, objects (last 100 steps)": losses,
            f"zero-shot mAP on {args.eval_scenes:,} validation scenes, seen labels": f"{scored['seen']:.3f}",
            "the same, unseen labels": f"{scored['unseen']:.3f}",
            "precision of the first three labels of all": f"{scored['P@3']:.3f}",
            "chance, all labels": f"{scored['chance']:.3f}",
            "world version": str(world.WORLD_VERSION),
            "torch, transformers": f"{torch.__version__}, {transformers.__version__}",
        }
        save(model, tokenizer, card(args, facts), args.out)
        if args.state:
            parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"rng": torch.get_rng_state(), "step": step, "minutes": minutes(), "running": running}
            torch.save(state, f"{args.state}.part")
            os.replace(f"{args.state}.part", args.state)

    model.train()
    for step in range(first, args.steps):
        most = next(most for share, most in CURRICULUM if step < share * args.steps)
        pool = pools[most]
        rows = pool[torch.randint(len(pool), (args.batch_size,))]
        captions = scenes.captions[rows, torch.randint(8, (args.batch_size,))][: args.batch_size // 2].long()
        objects = scenes.objects[rows]
        candidates = torch.where(objects.any(0).any(0))[0]
        candidates = candidates[torch.randperm(len(candidates))[: args.batch_size]]
        objects = objects[..., candidates]
        names = (names_full if step % 2 else names_bare)[candidates]
        pixels, places = augment(scenes.pixels[rows], scenes.places[rows])
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16()):
            tokens = embed_tokens(model, prepare(pixels))
            end = tokenizer.eos_token_id
            named = embed_texts(model, names, end)
            texts = embed_texts(model, captions, end)
        scale = model.logit_scale.exp().clamp(max=100)
        same = (captions[:, None] == captions[None]).all(-1)
        images, patches = tokens[:, 0], tokens[:, 1:]
        best_patches = (patches @ named.T).topk(3, dim=1).values.mean(1)
        losses = [
            contrast(scale * images[: len(texts)] @ texts.T, same),
            contrast(scale * images @ named.T, objects.any(1)),
            contrast(scale * best_patches, objects.any(1)),
            contrast(scale * embed_objects(patches, places).flatten(0, 1) @ named.T, objects.flatten(0, 1)),
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running = [*running[-99:], [loss.item() for loss in losses]]
        if (step + 1) % 100 == 0:
            CONSOLE.log(f"step {step + 1}, {minutes():.1f} min, losses {np.mean(running, axis=0).round(3)}")
        if (step + 1) % args.eval_every == 0 and step + 1 < args.steps:
            evaluate_and_save(step + 1)
    evaluate_and_save(args.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(world.__file__).parents[2] / "resources" / "ovml-demo")
    parser.add_argument("--start", help="folder of a former ovml-demo to start from (default: random weights)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, batches and scenes")
    parser.add_argument("--scenes", type=int, default=16_000, help="number of scenes")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--eval-every", type=int, default=100, help="steps between evaluations, each saved to --out")
    parser.add_argument("--eval-scenes", type=int, default=1000, help="scenes of an evaluation")
    parser.add_argument("--state", type=Path, help="file for resuming an interrupted run")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
