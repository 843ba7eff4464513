"""Training transforms: pictures per second of one core, for each way of doing RandAugment.

Usage: `python benchmarks/transforms.py [--pictures 64] [--rounds 15] [--json FILE]`

The pictures are JPEGs that the script draws. Every way goes from their bytes to a normalised batch
`[pictures, 3, 224, 224]`: decoding, random resized crop, flip, RandAugment (magnitude 9), normalisation, stacking.

- Ours: `ovml.data.RandAugment`, which calls Pillow; once as in the paper's recipe (each of two operations drawn is
  carried out with a chance of one half), and once carrying out both, as the other libraries do.
- kornia: `kornia.augmentation.auto.RandAugment` on the batch, and on each picture by itself.
- torchvision: `torchvision.transforms.v2.RandAugment` on Pillow pictures, and on uint8 tensors.

kornia and torchvision are left out with a note where they cannot be imported. The second table has the parts, each by
itself on the same pictures; the operations are at magnitude 9. The third is of what makes large pictures cheaper: JPEG
decoding at half size (`Image.draft`) and reducing before resizing (`reducing_gap`), with the mean and greatest
difference to the exact crop, in levels of 0..255.

Times are processor seconds of one thread (`time.process_time`), the mean over rounds in which all ways take turns:
the mean, because kornia draws its operations once for a batch, and some cost twenty times as much as others.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
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
from ovml.data.transforms import TrainTransform
from ovml.encoders.image_processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor
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


def to_bytes(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def plain_normalize(image: Image.Image) -> torch.Tensor:
    """The formula as it stands."""
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - MEAN) / STD


def ways(notes: list[str]) -> dict[str, Callable[[list[bytes]], torch.Tensor]]:
    """From JPEGs to a batch."""
    evaluate = replace(SPEC, resize=256)
    recipe = TrainTransform(SPEC, rand_augment=RandAugment())
    both = TrainTransform(SPEC, rand_augment=RandAugment(prob=1))
    found: dict[str, Callable[[list[bytes]], torch.Tensor]] = {
        "evaluation (resize 256, centre crop)": lambda files: torch.stack([evaluate(load_image(f)) for f in files]),
        "crop + flip": lambda files: torch.stack([CROP(load_image(f)) for f in files]),
        "+ RandAugment (the recipe)": lambda files: torch.stack([recipe(load_image(f)) for f in files]),
        "+ RandAugment, both operations": lambda files: torch.stack([both(load_image(f)) for f in files]),
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
            batch = torch.stack([to_bytes(crop(load_image(f))) for f in files]).float() / 255
            augmented: torch.Tensor = kornia_augment(batch)
            return (augmented - MEAN) / STD

        def kornia_each(files: list[bytes]) -> torch.Tensor:
            crops = (to_bytes(crop(load_image(f)))[None].float() / 255 for f in files)
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
            [finish(tensor_augment(to_bytes(crop(load_image(f))))) for f in files]
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

    unscaled = [to_bytes(image) for image in crops]
    return {
        "decoding": lambda: [load_image(f) for f in files],
        "crop + flip": lambda: [crop(image) for image in images],
        "RandAugment (the recipe)": lambda: [augment(image) for image in crops],
        "normalisation": lambda: [SPEC.normalize(image) for image in crops],
        "normalisation, plain formula": lambda: [plain_normalize(image).contiguous() for image in crops],
        "stacking": lambda: torch.stack(tensors),
        "no normalisation, bytes": lambda: [to_bytes(image) for image in crops],
        "stacking bytes": lambda: torch.stack(unscaled),
        **{f"operation {name}": partial(operate, operation) for name, operation in OPERATIONS.items()},
    }


def shrunk(file: bytes, box: tuple[int, int, int, int], draft: bool, gap: float | None) -> Image.Image:
    """A crop, decoded at no more size than it needs where `draft`."""
    with Image.open(io.BytesIO(file)) as image:
        width = image.width
        if draft:
            spare = max(1, min(box[2] - box[0], box[3] - box[1]) // 224)
            image.draft("RGB", (image.width // spare, image.height // spare))
        scale = image.width / width
        left, top, right, bottom = (side * scale for side in box)
        return image.convert("RGB").resize(
            (224, 224), Image.Resampling.BICUBIC, box=(left, top, right, bottom), reducing_gap=gap
        )


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


def shrink_table(files: list[bytes], size: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    boxes = [CROP.crop_box(*size) for _ in files]
    kinds = {"exact": (False, None), "reducing_gap 1.5": (False, 1.5), "draft": (True, None), "both": (True, 1.5)}

    def crops(draft: bool, gap: float | None) -> list[Image.Image]:
        return [shrunk(file, box, draft, gap) for file, box in zip(files, boxes, strict=True)]

    seconds = processor_seconds({name: partial(crops, *kind) for name, kind in kinds.items()}, rounds)
    exact = np.stack([np.asarray(image, dtype=int) for image in crops(False, None)])
    rows = []
    for name, kind in kinds.items():
        apart = np.abs(np.stack([np.asarray(image, dtype=int) for image in crops(*kind)]) - exact)
        ms = 1000 * seconds[name] / len(files)
        rows.append(
            {
                "pictures": "{}x{}".format(*size),
                "decode + crop": name,
                "ms": ms,
                "mean": apart.mean(),
                "max": apart.max(),
            }
        )
    return rows


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
        results["ways"] = ways_table(files, options.rounds, notes)
        print("; ".join(notes))
        print(f"{len(files)} JPEGs of 500x375 pixels, {sum(map(len, files)) / len(files) / 1024:.0f} KiB on average\n")
        show(results["ways"])
        each = processor_seconds(parts(files), options.rounds)
        results["parts"] = [{"part": name, "ms": 1000 * value / len(files)} for name, value in each.items()]
        show(results["parts"])
        results["shrinking"] = shrink_table(files, (500, 375), options.rounds)
        large = (1024, 768)
        results["shrinking"] += shrink_table(jpegs(options.pictures // 4, *large), large, options.rounds)
        show(results["shrinking"])
    if options.json:
        options.json.write_text(json.dumps({"versions": notes, **results}, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
