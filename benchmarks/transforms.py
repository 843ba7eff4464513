"""Training transforms: pictures per second of one core, beside other libraries and a plain loop over Pillow.

Usage: `python benchmarks/transforms.py [--pictures 64] [--rounds 15] [--json FILE]`

The pictures are JPEGs that the script draws. The first table goes from their bytes to a batch
`[pictures, 3, 224, 224]` by decoding, random resized crop, flip and stacking. Ours is what a data loader does: rows of
a data set, random numbers seeded for each row, targets of 1,000 labels, EXIF orientation and transparency looked at.
The plain loop is careful: `Image.open`, `crop`, `resize`, `np.stack`, nothing else; once to bytes, as ours, and once to
normalised floats, as published loops do. Torchvision v2 and albumentations stand beside them where they are installed.
Aim: 1.0 of the best of them.

The second table goes to normalised batches, with RandAugment (magnitude 9):

- Ours: `ovml.data.RandAugment`, which calls Pillow; once as in the paper's recipe (each of two operations drawn is
  carried out with a chance of one half), and once carrying out both, as the other libraries do.
- kornia: `kornia.augmentation.auto.RandAugment` on the batch, and on each picture by itself.
- torchvision: `torchvision.transforms.v2.RandAugment` on Pillow pictures, and on uint8 tensors.

kornia and torchvision are left out with a note where they cannot be imported. The third table has the parts, each by
itself on the same pictures; the operations are at magnitude 9. The fourth is of JPEG decoding at 1/2, 1/4 or 1/8 of the
size (`Image.draft`) before an image is resized for evaluation: the greatest difference to the plain way, in levels of
0..255, and the share of values that differ by more than one level; of photographs, noise, and edges of full contrast.

Times are processor seconds of one thread (`time.process_time`), the mean over rounds in which all ways take turns:
the mean, because kornia draws its operations once for a batch, and some cost twenty times as much as others.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from common import markdown
from PIL import Image

from ovml.data import RandAugment
from ovml.data.rand_augment import GREY, OPERATIONS, Operation
from ovml.data.rows import RowReader, collate
from ovml.data.transforms import TrainTransform
from ovml.encoders.image_processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor, image_bytes
from ovml.utils.images import load_image

SPEC = ImageProcessor(224, IMAGENET_MEAN, IMAGENET_STD)
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
CROP = TrainTransform(SPEC)


def jpegs(count: int, width: int, height: int) -> list[bytes]:
    """Pictures of blobs at several scales, edges and some noise, at quality 90."""
    draw = np.random.default_rng(0)
    files = []
    for _ in range(count):
        canvas = np.zeros((height, width, 3))
        for cells, strength in ((4, 90), (16, 60), (64, 25)):
            blobs = draw.integers(0, 256, (cells * height // width + 1, cells, 3), dtype=np.uint8)
            scaled = Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)
            canvas += (np.asarray(scaled) / 127.5 - 1) * strength
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        canvas[(x + draw.uniform(-1, 1) * y) % 200 < 100] += 40
        canvas += draw.normal(0, 6, canvas.shape) + 110
        file = io.BytesIO()
        Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def crop(image: Image.Image) -> Image.Image:
    """What `TrainTransform` does before normalisation."""
    image = image.resize((224, 224), Image.Resampling.BICUBIC, box=CROP.crop_box(*image.size))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(()).item() < 0.5 else image


def plain_normalize(image: Image.Image) -> torch.Tensor:
    """The formula as it stands."""
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - MEAN) / STD


def plain_box(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """A crop of random area and ratio, as torchvision draws it."""
    for _ in range(10):
        area = width * height * draw.uniform(0.08, 1)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def plain_loop(files: list[bytes], normalize: bool) -> torch.Tensor:
    """Files to a batch by Pillow and NumPy alone."""
    draw, arrays = random.Random(torch.initial_seed()), []
    for file in files:
        decoded = Image.open(io.BytesIO(file))
        decoded.load()
        image = decoded.crop(plain_box(*decoded.size, draw)).resize((224, 224), Image.Resampling.BICUBIC)
        if draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        arrays.append(np.asarray(image))
    batch = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    return batch.float().div_(255).sub_(MEAN).div_(STD) if normalize else batch


def reading_ways(notes: list[str]) -> dict[str, Callable[[list[bytes]], torch.Tensor]]:
    """From JPEGs to a batch of random crops."""
    reader = RowReader(CROP, 1000, exhaustive=True)

    def ours(files: list[bytes]) -> torch.Tensor:
        empty: dict[str, Any] = {"positive": [3, 500], "negative": []}
        rows = [{"image": {"bytes": f, "path": None}, "image_id": str(i), **empty} for i, f in enumerate(files)]
        epoch = torch.initial_seed()
        pixels: torch.Tensor = collate([{**reader.read(row, epoch, i), "row": i} for i, row in enumerate(rows)])[
            "pixel_values"
        ]
        return pixels

    found: dict[str, Callable[[list[bytes]], torch.Tensor]] = {
        "ours, bytes": ours,
        "plain loop, bytes": partial(plain_loop, normalize=False),
        "plain loop, normalised floats": partial(plain_loop, normalize=True),
    }
    try:
        from torchvision.transforms import InterpolationMode, v2
    except Exception as error:
        notes.append(f"torchvision left out: {str(error).splitlines()[0]}")
    else:
        crop_and_flip = v2.Compose(
            [
                v2.RandomResizedCrop(224, interpolation=InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
            ]
        )
        found["torchvision v2 on Pillow pictures, bytes"] = lambda files: torch.stack(
            [crop_and_flip(Image.open(io.BytesIO(f)).convert("RGB")) for f in files]
        )
    try:
        import albumentations as album  # type: ignore[import-not-found]
    except Exception as error:
        notes.append(f"albumentations left out: {str(error).splitlines()[0]}")
    else:
        import cv2  # type: ignore[import-not-found]

        cv2.setNumThreads(1)
        compose = album.Compose([album.RandomResizedCrop((224, 224), interpolation=2), album.HorizontalFlip()])

        def by_album(files: list[bytes]) -> torch.Tensor:
            decoded = (cv2.imdecode(np.frombuffer(f, np.uint8), cv2.IMREAD_COLOR_RGB) for f in files)
            return torch.from_numpy(np.stack([compose(image=array)["image"] for array in decoded])).permute(0, 3, 1, 2)

        found["albumentations, no antialiasing, bytes"] = by_album
    return found


def ways(notes: list[str]) -> dict[str, Callable[[list[bytes]], torch.Tensor]]:
    """From JPEGs to a batch."""
    transforms: dict[str, Callable[[Image.Image], torch.Tensor]] = {
        "evaluation (resize 256, centre crop)": replace(SPEC, resize=256).pixels,
        "crop + flip": CROP,
        "+ RandAugment (the recipe)": TrainTransform(SPEC, rand_augment=RandAugment()),
        "+ RandAugment, both operations": TrainTransform(SPEC, rand_augment=RandAugment(prob=1)),
    }

    def ours(files: list[bytes], transform: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor:
        return SPEC.normalize_pixels(torch.stack([transform(load_image(file)) for file in files]))

    found: dict[str, Callable[[list[bytes]], torch.Tensor]] = {
        name: partial(ours, transform=transform) for name, transform in transforms.items()
    }
    try:
        import kornia
        from kornia.augmentation.auto import RandAugment as KorniaRandAugment
    except Exception as error:
        notes.append(f"kornia left out: {str(error).splitlines()[0]}")
    else:
        notes.append(f"kornia {kornia.__version__}")
        kornia_augment = KorniaRandAugment(n=2, m=27)  # of 30

        def kornia_batch(files: list[bytes]) -> torch.Tensor:
            batch = torch.stack([image_bytes(crop(load_image(f))) for f in files]).float() / 255
            augmented: torch.Tensor = kornia_augment(batch)
            return (augmented - MEAN) / STD

        def kornia_each(files: list[bytes]) -> torch.Tensor:
            crops = (image_bytes(crop(load_image(f)))[None].float() / 255 for f in files)
            return torch.cat([(kornia_augment(image) - MEAN) / STD for image in crops])

        found["+ kornia on the batch, both"] = kornia_batch
        found["+ kornia per picture, both"] = kornia_each
    try:
        import torchvision
        from torchvision.transforms import InterpolationMode, v2
    except Exception as error:
        notes.append(f"torchvision left out: {str(error).splitlines()[0]}")
    else:
        notes.append(f"torchvision {torchvision.__version__}")
        fill = [round(255 * value) for value in IMAGENET_MEAN]
        # Magnitude of 0..30. Torchvision knows no bicubic affine operation on tensors.
        augment = v2.RandAugment(2, magnitude=27, interpolation=InterpolationMode.BICUBIC, fill=fill)
        tensor_augment = v2.RandAugment(2, magnitude=27, interpolation=InterpolationMode.BILINEAR, fill=fill)
        finish = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
        found["+ torchvision on Pillow pictures, both"] = lambda files: torch.stack(
            [SPEC.normalize(augment(crop(load_image(f)))) for f in files]
        )
        found["+ torchvision on tensors, both"] = lambda files: torch.stack(
            [finish(tensor_augment(image_bytes(crop(load_image(f))))) for f in files]
        )
    return found


def parts(files: list[bytes]) -> dict[str, Callable[[], Any]]:
    """What the ways are made of, each by itself."""
    images = [load_image(f) for f in files]
    torch.manual_seed(0)
    crops = [crop(image) for image in images]
    augment = RandAugment()
    tensors = [SPEC.normalize(image) for image in crops]

    def operate(operation: Operation) -> list[Image.Image]:
        return [operation(image, 0.9, GREY) for image in crops]

    unscaled = [image_bytes(image) for image in crops]
    batch = torch.stack(unscaled)
    return {
        "decoding": lambda: [load_image(f) for f in files],
        "crop + flip": lambda: [crop(image) for image in images],
        "RandAugment (the recipe)": lambda: [augment(image) for image in crops],
        "to bytes": lambda: [image_bytes(image) for image in crops],
        "stacking bytes": lambda: torch.stack(unscaled),
        "normalisation of a batch of bytes": lambda: SPEC.normalize_pixels(batch),
        "to normalised floats, one by one": lambda: [SPEC.normalize(image) for image in crops],
        "to normalised floats, plain formula": lambda: [plain_normalize(image).contiguous() for image in crops],
        "stacking floats": lambda: torch.stack(tensors),
        **{f"operation {name}": partial(operate, operation) for name, operation in OPERATIONS.items()},
    }


def drawings(side: int) -> dict[str, Image.Image]:
    """Square pictures of a kind each."""
    draw = np.random.default_rng(0)
    edges = np.zeros((side, side, 3), np.uint8)
    for _ in range(60):
        (left, right), (top, bottom) = np.sort(draw.integers(0, side, (2, 2)))
        edges[top:bottom, left:right] = draw.integers(0, 2, 3) * 255
    return {
        "photograph": load_image(jpegs(1, side, side)[0]),
        "noise": Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)),
        "edges": Image.fromarray(edges),
    }


def draft_table(size: int = 64) -> list[dict[str, Any]]:
    """How far drafts are from the plain way, by what is left to resize after them."""
    rows = []
    for left in (1, 2, 4, 8):
        for scale in (2, 4, 8):
            found: dict[str, Any] = {"decoded at": f"1/{scale}", "then resized by": left}
            for name, picture in drawings(size * scale * left).items():
                file = io.BytesIO()
                picture.save(file, "JPEG", quality=90)
                resized = []
                for draft in (False, True):
                    image = Image.open(file)
                    if draft:
                        image.draft("RGB", (image.width // scale, image.height // scale))
                    small = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
                    resized.append(np.asarray(small, dtype=int))
                apart = np.abs(resized[0] - resized[1])
                found[f"{name}, max"] = int(apart.max())
                found[f"{name}, above 1"] = f"{(apart > 1).mean():.1%}"
            rows.append(found)
    return rows


def processor_seconds(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Mean over rounds; every call was made once before."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            torch.manual_seed(turn)
            start = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.mean(values) for name, values in seconds.items()}


def ways_table(files: list[bytes], rounds: int, notes: list[str]) -> list[dict[str, Any]]:
    calls = {name: partial(way, files) for name, way in ways(notes).items()}
    seconds = processor_seconds(calls, rounds)
    return [
        {
            "way": name,
            "pictures/s": len(files) / value,
            "ms": 1000 * value / len(files),
            "ms for RandAugment": 1000 * (value - seconds["crop + flip"]) / len(files) if name[0] == "+" else None,
        }
        for name, value in seconds.items()
    ]


def reading_table(files: list[bytes], rounds: int, notes: list[str]) -> list[dict[str, Any]]:
    calls = {name: partial(way, files) for name, way in reading_ways(notes).items()}
    seconds = processor_seconds(calls, rounds)
    return [
        {
            "way": name,
            "pictures/s": len(files) / value,
            "ms": 1000 * value / len(files),
            "ours / this (aim: 1.0)": value / seconds["ours, bytes"],
        }
        for name, value in seconds.items()
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
        return "" if value is None else str(value)

    print(markdown(list(rows[0]), [[cell(value) for value in row.values()] for row in rows]), flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    files = jpegs(options.pictures, 500, 375)
    notes = [f"Python {platform.python_version()}", f"torch {torch.__version__}", f"Pillow {PIL.__version__}"]
    results: dict[str, Any] = {}
    with torch.no_grad():
        results["reading"] = reading_table(files, options.rounds, notes)
        results["ways"] = ways_table(files, options.rounds, notes)
        print("; ".join(notes))
        print(f"{len(files)} JPEGs of 500x375 pixels, {sum(map(len, files)) / len(files) / 1024:.0f} KiB on average\n")
        show(results["reading"])
        show(results["ways"])
        each = processor_seconds(parts(files), options.rounds)
        results["parts"] = [{"part": name, "ms": 1000 * value / len(files)} for name, value in each.items()]
        show(results["parts"])
        results["draft"] = draft_table()
        show(results["draft"])
    if options.json:
        options.json.write_text(json.dumps({"versions": notes, **results}, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
