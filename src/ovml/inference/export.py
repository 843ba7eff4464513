"""Export of a model to one file that runs without ovml, with the label embeddings as an input.

model.onnx                 `pixel_values [B, 3, H, W]`, `label_embeds [L, D]` -> `logits [B, L]`; model.pt2 likewise
model.onnx.data            the weights, if they are too large for one ONNX file; `model.2.onnx.data` if the file that
                           was replaced had such weights too
model.labels.safetensors   `label_embeds`, with the label names in the metadata, if there are labels
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ovml.encoders.execution import Execution
from ovml.heads.pool import fitted_part
from ovml.inference.export_formats import (
    FORMATS,
    Run,
    check_packages,
    data_path,
    labels_path,
    load_traced,
    reason,
    tracing,
    write_traced,
)
from ovml.inference.label_embeddings import write_label_embeddings
from ovml.inference.quantize import RANDOM_IMAGES, Parity, calibration_images, compare, quantize_file
from ovml.inference.tagger import Tagger
from ovml.model import OpenVocabularyModel
from ovml.prompts import PromptLearner
from ovml.utils.errors import UserError
from ovml.utils.files import check_output, folder_beside, sync, write_errors
from ovml.utils.images import ImageLike
from ovml.utils.version import __version__
from ovml.vocabulary import LabelVocabulary

TOLERANCE = 1e-4
"""Maximum difference from the model's own logits, relative to the largest logit if that is above 1."""
CHECKED_SIZES = ((1, 2), (3, 500))
"""Numbers of images and labels that a written file is checked on; other numbers than in tracing."""


class Exported(NamedTuple):
    """Files that were written.

    Attributes:
        path: The model.
        labels: Label embeddings and names; `None` if there are no labels.
        data: The weights, if they do not fit into the model's file; keep the two files together.
        difference: Maximum difference from the model's own logits, on random images and label embeddings (see
            `TOLERANCE`). `None`: not checked, since onnxruntime is not installed. Of a quantized file that of the file
            in float32 that it was made from.
        parity: How far a quantized file is from the one in float32.
    """

    path: Path
    labels: Path | None
    data: Path | None
    difference: float | None
    parity: Parity | None = None


class Scorer(nn.Module):
    """Copy of a model's image encoder and head, in float32 on the CPU, for inference.

    Args:
        model: Is not changed.
    """

    background: Tensor

    def __init__(self, model: OpenVocabularyModel) -> None:
        super().__init__()
        self.image_encoder = copy.deepcopy(model.image_encoder)
        self.image_encoder.execution = Execution()
        self.tail = self.image_encoder.tail(self.image_encoder.read_layers)
        self.head = copy.deepcopy(model.head)
        self.register_buffer("background", model.with_background(torch.empty(0, model.embed_dim)).clone())
        self.to("cpu", torch.float32).eval().requires_grad_(False)

    def forward(self, pixel_values: Tensor, label_embeds: Tensor) -> Tensor:
        """Score normalised images `[B, 3, H, W]` against label embeddings `[L, D]`; returns logits `[B, L]`."""
        hidden_states = self.image_encoder.trunk(pixel_values, self.image_encoder.read_layers)
        features = self.tail(hidden_states).for_labels(label_embeds)
        if not len(self.background):
            return self.head(features, label_embeds)  # type: ignore[no-any-return]
        logits: Tensor = self.head(features, torch.cat([label_embeds, self.background]))[:, : label_embeds.shape[0]]
        return logits


def export_model(
    model: OpenVocabularyModel,
    path: str | Path,
    format: str | None = None,
    labels: Sequence[str] | LabelVocabulary | None = None,
    prompt: PromptLearner | str | Sequence[str] | None = None,
    opset: int | None = None,
    overwrite: bool = False,
    quantize: Literal["int8"] | None = None,
    calibrate: Iterable[ImageLike] | None = None,
) -> Exported:
    """Write a model for use without ovml, in float32. The file appears after its logits were compared with the model's.

    Args:
        model: The model, on any device and in any precision.
        path: `.onnx` or `.pt2`.
        format: `onnx` or `torch.export`. Default: by the suffix of the path.
        labels: Labels whose embeddings are written beside the model. Default: the model's own vocabulary, if it has
            one. The file scores any other label embeddings as well.
        prompt: Replaces the model's own prompt; see `Tagger`.
        opset: ONNX operator set. Default: torch's choice.
        overwrite: Replace the file, its labels and its data.
        quantize: `int8` for an ONNX file whose image tower multiplies 8-bit integers; see `ovml.inference.quantize`.
        calibrate: Images like those to be scored, which set the scales of a quantized file. Default: each call
            measures its own.

    Raises:
        UserError: The path cannot be used, a package is missing, the head cannot be exported, or the written file
            gives other logits than the model.

    Example:
        >>> import tempfile
        >>> from ovml.model import OpenVocabularyModel
        >>> model = OpenVocabularyModel("ovml-demo", labels=["red circle", "blue star"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_model(model, f"{folder}/model.pt2").labels.name
        'model.labels.safetensors'
    """
    path = Path(os.path.abspath(path))
    format = check_target(path, format, overwrite)
    if opset is not None and format != "onnx":
        raise UserError("opset: only the format onnx has one; leave it out")
    if quantize is not None and (quantize != "int8" or format != "onnx"):
        raise UserError(f"quantize: must be 'int8', of the format onnx; got {quantize!r} of {format}")
    if calibrate is not None and quantize is None:
        raise UserError("calibrate: sets the scales of a quantized file; give quantize too, or leave it out")
    check_packages(format, quantized=quantize is not None)
    if model.looks_again:
        raise UserError("scoring: a second look depends on what an image shows, and is not exported; take patches")
    if fitted_part(model.head) is not None:
        raise UserError(
            f"head: a {type(model.head).__name__} scores the labels that it was fitted for, and an exported file takes "
            "any; export a plain CLIP with a scoring that needs no fit, or tag with the model itself"
        )
    pixel_values = None if calibrate is None else calibration_images(calibrate, model.image_processor)
    vocabulary = model.vocabulary if labels is None else model.vocabulary_of(labels)
    if vocabulary is None and prompt is not None:
        raise UserError("prompt: there are no labels to embed with it; give labels too")
    embeds = None if vocabulary is None else Tagger(model, vocabulary, prompt=prompt).label_embeds()
    if embeds is not None and embeds.dim() == 3 and not model.head.takes_pairs:
        raise UserError("prompt: several texts of a label cannot be exported; take pool='mean'")

    metadata = _metadata(model)
    with write_errors(path), folder_beside(path) as folder:
        written = folder / _unused_name(path)  # ONNX files hold the name of their data file
        traced = written if quantize is None else folder / "float32.onnx"
        parity = None
        with tracing(model.head, format):
            scorer = Scorer(model)
            write_traced(scorer, _random_inputs(model, 2, 5, seed=0), traced, metadata, opset)
            run = load_traced(traced)
            difference = None if run is None else _difference(scorer, run, model, path.name)
            if quantize is not None and run is not None:
                parity = _quantized(model, traced, written, run, pixel_values, embeds)
        if vocabulary is not None and embeds is not None:
            write_label_embeddings(labels_path(written), vocabulary.names, embeds, metadata)
        sync(folder)
        labels_file, data_file = _put_in_place(written, path)
    return Exported(path, labels_file, data_file, difference, parity)


def check_target(path: Path, format: str | None, overwrite: bool) -> str:
    """Return the format of a file to be written.

    Raises:
        UserError: The format is unknown, the path has another suffix, or the file exists.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"format {format!r}: unknown; it is one of {', '.join(FORMATS)}")
    suffixes = {suffix: name for name, suffix in FORMATS.items() if format in (None, name)}
    check_output(path, list(suffixes), overwrite)
    for file in (labels_path(path), *map(data_path, _names(path))):
        check_output(file, [file.suffix], overwrite)
    return suffixes[path.suffix.lower()]


def _metadata(model: OpenVocabularyModel) -> dict[str, str]:
    """Image preparation and origin, as text; numbers are JSON."""
    processor = model.image_processor
    return {
        "image_size": json.dumps(processor.size),
        "image_mean": json.dumps(list(processor.mean)),
        "image_std": json.dumps(list(processor.std)),
        "image_squash": json.dumps(processor.squash),
        "image_resize": json.dumps(processor.short_side),
        "image_resample": json.dumps(int(processor.resample)),
        "image_round_crop": json.dumps(processor.round_crop),
        "head": type(model.head).__qualname__,
        "ovml_version": __version__,
    }


def _random_inputs(model: OpenVocabularyModel, num_images: int, num_labels: int, seed: int) -> tuple[Tensor, Tensor]:
    generator, side = torch.Generator().manual_seed(seed), model.image_processor.size
    pixel_values = torch.randn(num_images, 3, side, side, generator=generator)
    return pixel_values, torch.randn(num_labels, *model.label_shape, generator=generator)


def _difference(scorer: Scorer, run: Run, model: OpenVocabularyModel, name: str) -> float:
    """Compare the written file with the model.

    Raises:
        UserError: The file cannot be run, or gives other logits.
    """
    maximum = 0.0
    for seed, (num_images, num_labels) in enumerate(CHECKED_SIZES, start=1):
        inputs = _random_inputs(model, num_images, num_labels, seed)
        sizes = f"{num_images} images and {num_labels} labels"
        expected = scorer(*inputs)
        try:
            found = run(*inputs)
        except Exception as error:  # the runtimes have errors of their own
            raise UserError(f"{name}: the exported file fails on {sizes} ({reason(error)}); not written") from error
        if found.shape != expected.shape:
            raise UserError(f"{name}: the exported file gives {list(found.shape)} for {sizes}; not written")
        same = (found == expected) | (found.isnan() & expected.isnan())
        scale = max(1.0, expected.nan_to_num(0, 0, 0).abs().max().item())
        difference = (found - expected).abs().masked_fill(same, 0).max().item() / scale
        if not difference <= TOLERANCE:
            raise UserError(
                f"{name}: the exported file differs from the model by {difference:.2g} on {sizes}; not written; "
                f"write {type(scorer.head).__qualname__}.forward with torch's operations alone"
            )
        maximum = max(maximum, difference)
    return maximum


def _quantized(
    model: OpenVocabularyModel, plain: Path, out: Path, run: Run, pixel_values: Tensor | None, embeds: Tensor | None
) -> Parity:
    """Write the quantized form of a file that runs, and compare the two."""
    random_pixels, random_embeds = _random_inputs(model, RANDOM_IMAGES, 500, seed=0)
    embeds = random_embeds if embeds is None else embeds.float().cpu()
    quantize_file(plain, out, pixel_values, embeds)
    for left in (plain, data_path(plain)):
        left.unlink(missing_ok=True)
    quantized = load_traced(out)
    assert quantized is not None
    compared = random_pixels if pixel_values is None else pixel_values
    return compare(quantized, run, compared, embeds, random=pixel_values is None)


def _names(path: Path) -> tuple[Path, Path]:
    """Paths of the model that its data file may be named after."""
    return path, path.with_name(f"{path.stem}.2{path.suffix}")


def _unused_name(path: Path) -> str:
    """The name whose data file is not that of the model which is replaced."""
    here = path.read_bytes() if path.exists() and any(data_path(name).exists() for name in _names(path)) else b""
    return next(name.name for name in _names(path) if os.fsencode(data_path(name).name) not in here)


def _put_in_place(written: Path, path: Path) -> list[Path | None]:
    """Rename the files; return the paths of labels and data.

    A kill at any moment leaves the old model or the new one, never with the data or the labels of the other.
    """
    found: list[Path | None] = [None, None]
    labels_path(path).unlink(missing_ok=True)
    if data_path(written).exists():
        found[1] = data_path(written).replace(path.with_name(data_path(written).name))
    written.replace(path)
    for old in map(data_path, _names(path)):
        if old != found[1]:
            old.unlink(missing_ok=True)
    if labels_path(written).exists():
        found[0] = labels_path(written).replace(labels_path(path))
    return found
