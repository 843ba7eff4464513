"""Train a small CLIP on captions of photographs, from random weights.

    export PYTHONPATH=benchmarks:examples
    python -m worlds.photos.pretrain_clip --seed 0 --out photos-clip-0
    ovml test --config benchmarks/worlds/photos/photos.yaml --model.clip photos-clip-0

Only photographs and captions of the training split are used, no labels. The result is a CLIP folder like any other;
ovml does not ship it. On a GPU, if there is one, else on the cores that torch may use (`OMP_NUM_THREADS`). An
interrupted training goes on from its last epoch (`OUT.state`), with the same numbers as without the interruption.

What is done so that 6,000 photographs are not learned by heart in the first epochs:

- each step reads random parts of the photographs, mirrored or not, in other light, and half of their patches (as in
  FLIP; it halves the cost too); the last tenth of the epochs reads all patches;
- each photograph has two of its five captions in a step, some of them cut to a few words, as labels are, or put into
  the templates by which labels are embedded. Which words are labels does not matter here;
- targets are smoothed: other photographs of a batch often show what a caption says.

`--chunks 4 --batch-size 1024` contrasts more photographs than fit into memory at once: embeddings of all are computed
first, then the gradients of one chunk after the other (cached gradients), at the cost of a second forward pass.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pretrain_demo_clip as demo
import torch
import transformers
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ovml import UserError
from ovml.training.messages import quiet_libraries
from ovml.training.optim import decay_groups, warmup_cosine_schedule
from ovml.training.precision import multiplies_bfloat16
from ovml.utils.files import atomic_write
from worlds.photos.photographs import SHARED, Pixels, captions_of, load_photographs, pixels_of, some_words

CONSOLE = Console(log_path=False)
WIDTH, PATCH, VISION_BLOCKS, TEXT_BLOCKS, TEXT_LENGTH = 192, 12, 6, 4, 32
STORED_SIDE = 128
"""Side of the kept photographs in pixels; the tower reads parts of them at 96."""
TEMPLATES = ("a photo of {}", "a picture of {}", "there is {} in the scene")
UNCUT, BARE = 0.5, 0.8
"""Share of the captions that are not cut; and of those that are not put into a template."""


@dataclass
class Photographs:
    """Photographs and their captions.

    Attributes:
        pixels: `[N, 128, 128, 3]` uint8, memory-mapped.
        captions: Of each photograph.
    """

    pixels: Pixels
    captions: list[list[str]]


@dataclass
class Batch:
    """What a step reads.

    Attributes:
        pixels: `[B, 3, 96, 96]`, normalised.
        texts: `[B * K, T]` token ids, the `K` captions of a photograph one after the other.
        kept: `[B, P']` patches that the tower reads; `None` for all.
    """

    pixels: Tensor
    texts: Tensor
    kept: Tensor | None


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A small CLIP with random weights: 96 pixels in patches of 12."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 6, "hidden_act": "quick_gelu"}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"num_hidden_layers": TEXT_BLOCKS, "vocab_size": len(tokenizer), "max_position_embeddings": TEXT_LENGTH}
    vision = {"num_hidden_layers": VISION_BLOCKS, "image_size": demo.SIDE, "patch_size": PATCH}
    return CLIPModel(
        CLIPConfig(
            text_config=tower | text | ids,
            vision_config=tower | vision,
            projection_dim=WIDTH,
            logit_scale_init_value=2.66,  # as in CLIP: a temperature of 0.07
        )
    )


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids `[N, T]`, as long as the longest text, at most 32."""
    return torch.tensor(tokenizer(list(texts), padding=True, truncation=True, max_length=TEXT_LENGTH)["input_ids"])


def altered(caption: str, rng: random.Random) -> str:
    """A caption as it is, or cut to a few neighbouring words; now and then in a template."""
    words = caption.lower().rstrip(" .").split()
    if rng.random() > UNCUT and len(words) > 2:
        length = rng.randint(2, len(words))
        start = rng.randint(0, len(words) - length)
        words = words[start : start + length]
    text = " ".join(words)
    return text if rng.random() < BARE else rng.choice(TEMPLATES).format(text)


def crops(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random parts of photographs, half of them mirrored, in other light; normalised.

    Args:
        pixels: `[B, H, W, 3]` uint8.
        generator: Of the random numbers, on the CPU.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(pixels)).uniform_(low, high, generator=generator)

    area, ratio = uniform(0.35, 1.0), (uniform(-1, 1) * np.log(4 / 3)).exp()
    width, height = ((area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1))
    x, y = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    mirror = (uniform(0, 1) < 0.5) * -2.0 + 1
    theta = torch.zeros(len(pixels), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2], theta[:, 1, 1], theta[:, 1, 2] = width * mirror, x, height, y
    light, contrast = (uniform(0.7, 1.3).view(-1, 1, 1, 1).to(pixels.device) for _ in range(2))
    grid = F.affine_grid(theta, [len(pixels), 3, demo.SIDE, demo.SIDE], align_corners=False).to(pixels.device)
    parts = F.grid_sample(pixels.permute(0, 3, 1, 2).float(), grid, padding_mode="border", align_corners=False)
    parts = parts * light
    middle = parts.mean((1, 2, 3), keepdim=True)
    return normalised((middle + (parts - middle) * contrast).clamp(0, 255))


def normalised(pixels: Tensor) -> Tensor:
    """Pixels in 0..255 as the image processor of the saved CLIP normalises them."""
    mean, std = (torch.tensor(value, device=pixels.device).view(1, 3, 1, 1) for value in (demo.MEAN, demo.STD))
    return (pixels.float() / 255 - mean) / std


def embed_images(model: CLIPModel, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
    """L2-normalised embeddings `[B, D]`, from some of the patches or all."""
    tower = model.vision_model
    states = tower.embeddings(pixels)
    if kept is not None:
        patches = states[:, 1:].gather(1, kept[..., None].expand(-1, -1, states.shape[-1]))
        states = torch.cat([states[:, :1], patches], dim=1)
    states = tower.encoder(inputs_embeds=tower.pre_layrnorm(states)).last_hidden_state
    return F.normalize(model.visual_projection(tower.post_layernorm(states[:, 0])).float(), dim=-1)


def contrast(images: Tensor, texts: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    """Symmetric contrastive loss of photographs `[B, D]` and their texts `[B * K, D]`, with smoothed targets."""
    logits = scale.exp().clamp(max=100) * images @ texts.T
    own = torch.arange(len(images), device=images.device)
    positive = own[:, None] == own.repeat_interleave(len(texts) // len(images))[None]
    evenly = -(logits.log_softmax(1).mean() + logits.log_softmax(0).mean()) / 2
    return (1 - smoothing) * demo.contrast(logits, positive) + smoothing * evenly


class Training:
    """The training of one CLIP, epoch by epoch.

    Args:
        args: Of the command line.
        photographs: The training split.
        tokenizer: Knows the words of its captions.
    """

    def __init__(self, args: argparse.Namespace, photographs: Photographs, tokenizer: CLIPTokenizer) -> None:
        if len(photographs.captions) < args.batch_size:
            raise UserError(
                f"--batch-size: {args.batch_size} are more than the {len(photographs.captions)} photographs"
            )
        self.args, self.photographs, self.tokenizer = args, photographs, tokenizer
        self.device = torch.device(args.device)
        torch.manual_seed(args.seed)
        self.model = build_model(tokenizer).to(self.device)
        self.half = multiplies_bfloat16(self.device)
        if self.half and self.device.type == "cpu":
            self.model.set_attn_implementation("eager")  # in bfloat16 there the fused one's backward pass is slower
        self.steps_an_epoch = len(photographs.captions) // args.batch_size
        groups = decay_groups(list(self.model.parameters()), "clip", args.lr, args.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        steps = args.epochs * self.steps_an_epoch
        self.schedule = warmup_cosine_schedule(self.optimizer, steps, min(2 * self.steps_an_epoch, steps / 10))
        self.epoch, self.minutes = 0, 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """What a training that goes on must have in common with its beginning."""
        names = ("seed", "epochs", "batch_size", "lr", "weight_decay", "smoothing", "captions", "patches")
        return {name: getattr(self.args, name) for name in names} | {"photographs": len(self.photographs.captions)}

    def batch(self, rows: Tensor, rng: random.Random, generator: torch.Generator) -> Batch:
        """Random parts and captions of some photographs."""
        rows = rows.sort().values  # read in the order of the file
        pixels = torch.from_numpy(self.photographs.pixels[rows.numpy()]).to(self.device)
        own = [rng.sample(self.photographs.captions[row], self.args.captions) for row in rows.tolist()]
        texts = tokenize(self.tokenizer, [altered(text, rng) for captions in own for text in captions])
        grid, kept = (demo.SIDE // PATCH) ** 2, None
        if self.epoch < 0.9 * self.args.epochs and self.args.patches < 1:
            order = torch.rand(len(rows), grid, generator=generator).argsort(1)
            kept = order[:, : max(1, round(self.args.patches * grid))].to(self.device)
        return Batch(crops(pixels, generator), texts.to(self.device), kept)

    def run_epoch(self) -> float:
        """Train for an epoch, whose random numbers hang on the seed and its number alone; the mean loss."""
        started = time.perf_counter()
        rng = random.Random(f"{self.args.seed}/{self.epoch}")
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        order = torch.randperm(len(self.photographs.captions), generator=generator)
        losses = []
        self.model.train()
        for rows in order.split(self.args.batch_size)[: self.steps_an_epoch]:
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(self.backward(self.batch(rows, rng, generator)))
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
        self.epoch += 1
        self.minutes += (time.perf_counter() - started) / 60
        return float(np.mean(losses))

    def backward(self, batch: Batch) -> float:
        """Compute the gradients of a batch, at once or in chunks; its loss."""
        scale = self.model.logit_scale
        if self.args.chunks == 1:
            loss = contrast(*self.embed(batch), scale, self.args.smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.item()
        chunks = self.chunks(batch)
        with torch.no_grad():
            embedded = [self.embed(chunk) for chunk in chunks]
        images, texts = (torch.cat(parts).requires_grad_() for parts in zip(*embedded, strict=True))
        loss = contrast(images, texts, scale, self.args.smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        assert images.grad is not None
        assert texts.grad is not None
        sizes = [len(chunk.pixels) for chunk in chunks]
        per_photograph = len(texts) // len(images)
        gradients = zip(
            images.grad.split(sizes), texts.grad.split([per_photograph * size for size in sizes]), strict=True
        )
        for chunk, (of_images, of_texts) in zip(chunks, gradients, strict=True):
            torch.autograd.backward(self.embed(chunk), (of_images, of_texts))
        return loss.item()

    def chunks(self, batch: Batch) -> list[Batch]:
        """Parts of a batch."""
        size = -(-len(batch.pixels) // self.args.chunks)
        pixels = batch.pixels.split(size)
        kept = batch.kept.split(size) if batch.kept is not None else [None] * len(pixels)
        texts = batch.texts.split(size * self.args.captions)
        return [Batch(*parts) for parts in zip(pixels, texts, kept, strict=True)]

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings of photographs and of texts."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            images = embed_images(self.model, batch.pixels, batch.kept)
            return images, demo.embed_texts(self.model, batch.texts, self.tokenizer.eos_token_id)

    def state(self) -> dict[str, Any]:
        """All that going on needs."""
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        kept = {name: part.state_dict() for name, part in parts.items()}
        return {**kept, "epoch": self.epoch, "minutes": self.minutes, "settings": self.settings}

    def restore(self, file: Path) -> None:
        """Go on from a file of `state`.

        Raises:
            UserError: It is of a training with other settings.
        """
        state = torch.load(file, map_location=self.device, weights_only=True)
        differ = [name for name, value in self.settings.items() if state["settings"][name] != value]
        if differ:
            was = ", ".join(f"{name} {state['settings'][name]}" for name in differ)
            raise UserError(f"{file}: of a training with {was}; give the same, another --out, or --again")
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.epoch, self.minutes = state["epoch"], state["minutes"]


@torch.no_grad()
def retrieval(training: Training, photographs: Photographs) -> dict[str, float]:
    """Recall at 1 and 5 of captions among the first captions of all photographs, and of photographs likewise."""
    model, device = training.model.eval(), training.device
    texts = tokenize(training.tokenizer, [own[0].lower() for own in photographs.captions]).to(device)
    texts = demo.embed_texts(model, texts, training.tokenizer.eos_token_id)
    images = []
    for start in range(0, len(texts), 250):
        part = (
            torch.from_numpy(np.array(photographs.pixels[start : start + 250])).to(device).permute(0, 3, 1, 2).float()
        )
        size = (demo.SIDE, demo.SIDE)
        images.append(embed_images(model, normalised(F.interpolate(part, size, mode="bicubic", antialias=True))))
    similar = torch.cat(images) @ texts.T
    found: dict[str, float] = {}
    for name, scores in (("captions", similar), ("photographs", similar.T)):
        rank = (scores > scores.diagonal()[:, None]).sum(1)
        found |= {f"{name} R@{k}": float((rank < k).float().mean()) for k in (1, 5)}
    return found


def card(args: argparse.Namespace, facts: dict[str, str]) -> str:
    """The README that goes with the weights."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""# A small CLIP of photographs

For measuring only: it knows little besides frequent things of its training photographs, whose licence is for research
alone. Trained from random weights by `python -m worlds.photos.pretrain_clip` on the photographs and captions of
`{args.data}`.

| fact | value |
|---|---|
{rows}
"""


def train(args: argparse.Namespace) -> None:
    source = load_photographs(args.data, args.cache_dir)
    splits = {}
    for split in ("train", "validation"):
        rows, key = source.splits[split], f"{source.key}/{split}"
        photographs = Photographs(pixels_of(rows, STORED_SIDE, key, args.cache_dir), captions_of(rows, args.data))
        splits[split] = Photographs(photographs.pixels[: args.limit], photographs.captions[: args.limit])
    templates = some_words([[template.format("") for template in TEMPLATES]])
    tokenizer = demo.build_tokenizer(some_words(splits["train"].captions) + 20 * templates)
    training = Training(args, splits["train"], tokenizer)
    state = args.out.with_name(f"{args.out.name}.state")
    if args.again:
        state.unlink(missing_ok=True)
    if state.is_file():
        training.restore(state)
        CONSOLE.log(f"going on after epoch {training.epoch}")
    parameters = sum(p.numel() for p in training.model.parameters())
    precision = "bfloat16" if training.half else "float32"
    CONSOLE.log(f"{parameters:,} parameters, {len(tokenizer):,} tokens, {len(splits['train'].captions):,} photographs")
    while training.epoch < args.epochs:
        cpu = time.process_time()
        loss = training.run_epoch()
        cpu = time.process_time() - cpu
        CONSOLE.log(
            f"epoch {training.epoch}, loss {loss:.3f}, {training.minutes:.1f} min (this one: {cpu:.0f} s of CPU)"
        )
        if training.epoch % args.eval_every and training.epoch < args.epochs:
            save_state(training, state)
            continue
        found = retrieval(training, splits["validation"])
        shares = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        CONSOLE.log(f"epoch {training.epoch}, validation: {shares}")
        settings = {name: str(value) for name, value in training.settings.items()}
        facts = {
            "parameters, tokens": f"{parameters:,}, {len(tokenizer):,}",
            **settings,
            "epochs done": str(training.epoch),
            "wall-clock minutes; device; products in": f"{training.minutes:.1f}; {training.device}; {precision}",
            "loss of the last epoch": f"{loss:.3f}",
            f"among {len(splits['validation'].captions):,} validation photographs": shares,
            "torch, transformers": f"{torch.__version__}, {transformers.__version__} ({platform.machine()})",
        }
        demo.save(training.model, tokenizer, card(args, facts), args.out)
        save_state(training, state)
    state.unlink()


def save_state(training: Training, file: Path) -> None:
    """Write what going on needs."""
    with atomic_write(file) as aside:
        torch.save(training.state(), aside)


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--data", default=SHARED, help=f"folder of Parquet files, or a name on the Hub (default: {SHARED})"
    )
    made.add_argument("--out", type=Path, default=Path("photos-clip"))
    made.add_argument("--again", action="store_true", help="train again even if --out exists")
    made.add_argument("--seed", type=int, default=0, help="seed of weights, batches and augmentation")
    made.add_argument("--epochs", type=int, default=80)
    made.add_argument("--batch-size", type=int, default=256, help="photographs that are contrasted in a step")
    made.add_argument("--chunks", type=int, default=1, help="parts in which a step computes its gradients")
    made.add_argument("--captions", type=int, default=2, help="captions of each photograph in a step")
    made.add_argument("--patches", type=float, default=0.5, help="share of the patches that a step reads")
    made.add_argument("--lr", type=float, default=1e-3)
    made.add_argument("--weight-decay", type=float, default=0.1)
    made.add_argument("--smoothing", type=float, default=0.1, help="share of the targets that is spread evenly")
    made.add_argument("--eval-every", type=int, default=5, help="epochs between evaluations, each saved to --out")
    made.add_argument("--limit", type=int, help="take only the first photographs of each split")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--cache-dir", help="folder for decoded photographs (default: that of `datasets`)")
    return made


def main() -> None:
    made = parser()
    args = made.parse_args()
    if args.out.exists() and not args.again and not args.out.with_name(f"{args.out.name}.state").is_file():
        CONSOLE.log(f"{args.out} exists; its README says how it was trained, and --again trains it again")
        return
    try:
        with quiet_libraries():
            train(args)
    except UserError as error:
        made.error(str(error))


if __name__ == "__main__":
    main()
