"""Exported ONNX files in 8-bit integers, by onnxruntime's quantization."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ovml.encoders.image_processor import ImageProcessor
from ovml.inference.export_formats import Run, data_path, reason
from ovml.inference.tagger import read_image
from ovml.utils.errors import UserError
from ovml.utils.images import ImageLike, is_one_image

MOST_IMAGES = 128
"""Images that a calibration reads, evenly spaced among those that are given."""
RANDOM_IMAGES = 16
BATCH = 8


class Parity(NamedTuple):
    """How far a quantized file is from the one in float32.

    Attributes:
        images: Number of images that were compared: those of the calibration, or random numbers.
        random: Whether they were random numbers.
        labels: Number of labels.
        top_label: Share of the images whose best label is the same.
        difference: Maximum difference of a score.
        spread: Difference of the largest and the smallest score in float32.
    """

    images: int
    random: bool
    labels: int
    top_label: float
    difference: float
    spread: float

    def table(self) -> str:
        """The numbers in three lines.

        >>> print(Parity(24, False, 8, 23 / 24, 0.0123, 1.5).table())
        int8 against float32, 24 calibration images, 8 labels
          same best label     95.8%
          largest difference  0.012, of scores that spread over 1.5
        """
        kind = "random images" if self.random else "calibration images"
        return (
            f"int8 against float32, {self.images:,} {kind}, {self.labels:,} labels\n"
            f"  same best label     {self.top_label:.1%}\n"
            f"  largest difference  {self.difference:.2g}, of scores that spread over {self.spread:.2g}"
        )


def calibration_images(images: Iterable[ImageLike], processor: ImageProcessor) -> Tensor:
    """Pixel values `[N, 3, S, S]` of at most `MOST_IMAGES` images; those that cannot be read are left out.

    Raises:
        UserError: There are no images, or none can be read.
    """
    if is_one_image(images):
        raise UserError("calibrate: expected several images, got one; write [image]")
    given = list(images)
    step = max(1, -(-len(given) // MOST_IMAGES))
    read = [read_image(image, processor) for image in given[::step]]
    pixels = [found for found in read if isinstance(found, Tensor)]
    if not pixels:
        first = next((f", the first: {found}" for found in read if isinstance(found, UserError)), "")
        raise UserError(f"calibrate: none of {len(given):,} images can be read{first}; give images like those to tag")
    return torch.stack(pixels)


def quantize_file(plain: Path, out: Path, pixel_values: Tensor | None, label_embeds: Tensor) -> None:
    """Write an exported model with the matrices of its image tower as 8-bit integers.

    The head stays in float32, because ranks hang on small differences, as do attention and norms.

    Args:
        plain: ONNX file in float32.
        out: The file to write, and its data where the weights are in a file of their own.
        pixel_values: Images `[N, 3, S, S]` whose activations give the scales (static quantization). `None`: the scales
            are measured in each call (dynamic).
        label_embeds: Any label embeddings `[L, D]`, which calibration images are scored against.

    Raises:
        UserError: onnxruntime cannot quantize the model.
    """
    onnx, quantization = import_module("onnx"), import_module("onnxruntime.quantization")
    matrices = tower_matrices(onnx.load(plain, load_external_data=False))
    if not matrices:  # onnxruntime would take all products then, those of the head too
        raise UserError("quantize: no matrix products of the image tower were found in the file; leave quantize out")
    options: dict[str, Any] = {
        "nodes_to_quantize": matrices,
        "per_channel": True,
        "weight_type": quantization.QuantType.QInt8,
        "use_external_data_format": data_path(plain).exists(),
    }
    try:
        if pixel_values is None:
            quantization.quantize_dynamic(plain, out, **options)
        else:
            reader = _reader(quantization.CalibrationDataReader, pixel_values, label_embeds)
            unsigned = quantization.QuantType.QUInt8  # twice as fast as signed on x86
            quantization.quantize_static(plain, out, reader, activation_type=unsigned, **options)
    except OSError:
        raise
    except Exception as error:  # onnxruntime has errors of its own
        raise UserError(f"quantize: onnxruntime cannot quantize this model ({reason(error)}); leave it out") from error


def tower_matrices(model: Any) -> list[str]:
    """Names of the nodes of an ONNX model that multiply by a matrix of the image tower."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights and not _of_head(node)
    ]


def _of_head(node: Any) -> bool:
    """Whether a node is the head's: torch writes the names of the modules around a node beside it."""
    properties = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(properties.get("pkg.torch.onnx.name_scopes", "[]"))
    return any(scope.split(".")[0] == "head" for scope in scopes)


def _reader(base: type, pixel_values: Tensor, label_embeds: Tensor) -> Any:
    """What onnxruntime reads calibration images from, one at a time."""

    def inputs() -> Iterator[dict[str, Any]]:
        for pixels in pixel_values.split(1):
            yield {"pixel_values": pixels.numpy(), "label_embeds": label_embeds.numpy()}

    rest = inputs()
    return type("Reader", (base,), {"get_next": lambda _: next(rest, None)})()


def compare(quantized: Run, plain: Run, pixel_values: Tensor, label_embeds: Tensor, random: bool) -> Parity:
    """Compare the scores of a quantized and a plain file."""
    found, expected = (_scores(run, pixel_values.split(BATCH), label_embeds) for run in (quantized, plain))
    same = found.argmax(dim=1) == expected.argmax(dim=1)
    difference, spread = (found - expected).abs().max().item(), (expected.max() - expected.min()).item()
    return Parity(len(found), random, found.shape[1], same.float().mean().item(), difference, spread)


def _scores(run: Run, batches: Sequence[Tensor], label_embeds: Tensor) -> Tensor:
    return torch.cat([run(pixels, label_embeds) for pixels in batches])
