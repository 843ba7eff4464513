"""What the sections share: sizes, cases, and the CLIP that is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Attributes:
        name: What is measured, and at which size.
        expected: What arithmetic expects of one H100 at full size; written before any GPU ran it.
        prepare: Makes the inputs and returns what is timed. A function that gives back a dict measured itself.
        work: What one call does, by the unit of its rate: `{"images/s": 64}`.
    """

    name: str
    expected: str
    prepare: Callable[[], Run]
    work: Mapping[str, float] = field(default_factory=dict)


class LeftOutError(Exception):
    """A case that cannot run here; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all sections; the defaults are those of the plan."""

    toy: bool = False
    copied: int = 2 * 2**30  # numbers of two bytes
    square: int = 8192
    batches: tuple[int, ...] = (64, 256)
    seen: int = 925
    unseen: int = 81
    large: int = 7186
    large_all: int = 7586
    huge: int = 100_000
    patches: int = 196
    text_batches: tuple[int, ...] = (256, 4096, 8192)
    images: int = 2048
    different: int = 256  # of the images; the others are the same files again
    workers: tuple[int, ...] = (8, 16)
    loader_epochs: int = 2
    tag_labels: int = 1000
    tag_batches: tuple[int, ...] = (32, 256)
    evaluated: int = 107_859
    steps: int = 60
    repeats: int = 30


FULL = Sizes()
TOY = Sizes(
    toy=True,
    copied=2**16,
    square=64,
    batches=(4,),
    seen=12,
    unseen=4,
    large=40,
    large_all=44,
    huge=100,
    patches=9,
    text_batches=(8, 16, 64),
    images=8,
    different=4,
    workers=(0, 1),
    loader_epochs=1,
    tag_labels=10,
    tag_batches=(4,),
    evaluated=600,
    steps=3,
    repeats=2,
)


@dataclass(frozen=True)
class Bench:
    """Where and at which sizes a section runs.

    Attributes:
        sizes: `FULL` or `TOY`.
        device: The device that is measured.
    """

    sizes: Sizes
    device: torch.device

    @property
    def side(self) -> int:
        """Height and width of images, in pixels."""
        return 48 if self.sizes.toy else 224

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return 32 if self.sizes.toy else 512

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random numbers on the device; zeros would take less power, and so less time."""
        return torch.randn(*shape, device=self.device, dtype=dtype)

    def targets(self, images: int, labels: int) -> Tensor:
        """Targets `[B, L]`, one in a hundred present and at least one of each image."""
        targets = (torch.rand(images, labels, device=self.device) < 0.01).to(torch.int8)
        targets[:, 0] = 1
        return targets

    def mixed(self, enabled: bool = True) -> AbstractContextManager[object]:
        """Mixed precision in bfloat16, as Lightning's `bf16-mixed` has it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def clip(self, vision_layers: int = 12, text_layers: int = 12) -> Any:
        """A CLIP of the shape of ViT-B/16 with random weights, which take the time of trained ones."""
        from transformers import CLIPConfig, CLIPModel

        tokenizer, width = self.tokenizer(), self.width
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        vision: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        text: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
        if self.sizes.toy:
            vision = text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
            vision_layers, text_layers = min(vision_layers, 3), min(text_layers, 2)
        torch.manual_seed(0)
        config = CLIPConfig(
            vision_config={**vision, "num_hidden_layers": vision_layers, "patch_size": 16, "image_size": self.side},
            text_config={**text, **ids, "pad_token_id": tokenizer.eos_token_id, "num_hidden_layers": text_layers},
            projection_dim=width,
        )
        return CLIPModel(config).eval().requires_grad_(False)

    @staticmethod
    def tokenizer() -> Any:
        """The tokenizer of ovml-demo, since that of CLIP cannot be had without a download."""
        from ovml.encoders.checkpoints import load_tokenizer

        return load_tokenizer("ovml-demo")

    def model(self, labels: int | None = None, **options: Any) -> Any:
        """An `OpenVocabularyModel` on the device."""
        from ovml import OpenVocabularyModel

        names = None if labels is None else label_names(labels)
        return OpenVocabularyModel(self.clip(), names, tokenizer=self.tokenizer(), **options).to(self.device)


SHAPES = ["circle", "square", "triangle", "cross", "star", "heart", "moon", "drop"]
COLOURS = ["red", "green", "blue", "yellow", "pink", "purple", "white", "black"]


def label_names(count: int) -> list[str]:
    """Different names of one to five words, a token each to the tokenizer of ovml-demo."""
    found: list[str] = []
    for length in range(1, 6):
        share = count // 5 if length < 5 else count
        more = (" ".join(chosen) for chosen in product([*SHAPES, *COLOURS], repeat=length))
        found += [name for name, _ in zip(more, range(min(share, count - len(found))), strict=False)]
    return found


def jpegs(bench: Bench, folder: str) -> list[str]:
    """Paths of JPEGs of 500 x 375 pixels, written into a folder."""
    draw, written = np.random.default_rng(0), []
    for i in range(bench.sizes.different):
        canvas = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        written.append(str(Path(folder) / f"{i:04d}.jpg"))
        canvas.resize((500, 375), Image.Resampling.BICUBIC).save(written[-1], quality=90)
    return (written * -(-bench.sizes.images // len(written)))[: bench.sizes.images]


def check_installed(*packages: str) -> None:
    """Leave a case out if a package is missing."""
    from importlib.util import find_spec

    if missing := [package for package in packages if find_spec(package) is None]:
        raise LeftOutError(f"{', '.join(missing)} is not installed")


Section = Callable[[Bench], Iterable[Case]]
