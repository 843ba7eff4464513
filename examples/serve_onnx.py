"""Tag images with an exported model. Needs Pillow, numpy, onnxruntime and safetensors, but neither ovml nor torch.

    ovml export --model runs/demo/version_0 --labels "red heart,moon,blue star" --out model.onnx
    python examples/serve_onnx.py model.onnx docs/images/scene.png ...

Labels are read from model.labels.safetensors; replace this file of label embeddings to use other labels.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from safetensors import safe_open


def prepare(
    image: Image.Image,
    size: int,
    resize: int,
    mean: list[float],
    std: list[float],
    squash: bool,
    resample: int,
    round_crop: bool,
) -> np.ndarray:
    """Resize the short side (both sides with `squash`), crop the centre and normalise; returns `[3, size, size]`."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    short = min(image.size)
    width, height = (resize if squash else resize * side // short for side in image.size)
    image = image.resize((width, height), Image.Resampling(resample))
    left, top = (width - size) / 2, (height - size) / 2
    left, top = (round(left), round(top)) if round_crop else (math.floor(left), math.floor(top))
    pixels = np.array(image.crop((left, top, left + size, top + size))).astype(np.float32)
    factor, shift = 1 / (255 * np.array(std)), -np.array(mean) / np.array(std)
    normalised: np.ndarray = pixels * factor.astype(np.float32) + shift.astype(np.float32)
    return normalised.transpose(2, 0, 1)


def main(model: str, *pictures: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    how = session.get_modelmeta().custom_metadata_map
    names = ("size", "resize", "mean", "std", "squash", "resample", "round_crop")
    spec = {name: json.loads(how[f"image_{name}"]) for name in names}
    with safe_open(Path(model).with_suffix(".labels.safetensors"), "np") as file:
        label_embeds, labels = file.get_tensor("label_embeds"), json.loads(file.metadata()["labels"])
    for picture in pictures:
        with Image.open(picture) as image:
            pixel_values = prepare(image, **spec)[None]
        (logits,) = session.run(["logits"], {"pixel_values": pixel_values, "label_embeds": label_embeds})
        for i in np.argsort(-logits[0], kind="stable")[:5]:
            print(f"{picture}\t{logits[0, i]:.6f}\t{labels[i]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
