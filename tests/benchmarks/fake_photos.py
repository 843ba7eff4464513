"""Drawn images with captions, in the layout of the shared photographs."""

import io

import numpy as np
import pandas as pd
from PIL import Image

CAPTIONS = {
    "dog": ["A brown dog runs through the grass .", "Two dogs run in a field .", "A dog is running on green grass ."],
    "boat": ["A man rows a boat on a lake .", "The boat floats on the water .", "A fisherman in his canoe ."],
    "snow": [
        "A skier jumps over the snow .",
        "A person on skis in the snow of a mountain .",
        "Someone skiing down a mountain .",
    ],
}


def write(folder, sizes=(12, 6, 6)):
    """Write `train`, `validation` and `test.parquet` with structs of bytes and path, as pandas writes them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        rows = []
        for i in range(size):
            kind = list(CAPTIONS)[i % len(CAPTIONS)]
            colour = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(colour).resize((60, 40)).save(buffer, "JPEG")
            image = {"bytes": buffer.getvalue(), "path": f"{split}-{i}.jpg"}
            captions = [*CAPTIONS[kind], CAPTIONS[kind][0], CAPTIONS[kind][1]]
            rows.append({"image": image, "image_id": f"{split}-{i}", "captions": captions})
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    return folder
