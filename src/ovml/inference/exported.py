"""Exported files in the place of a model, for tagging without the weights of CLIP."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovml.encoders.image_processor import ImageProcessor
from ovml.inference.export_formats import FORMATS, Traced, data_path, labels_path, open_traced, reason
from ovml.inference.label_embeddings import read_label_embeddings
from ovml.model import Labels, OpenVocabularyModel
from ovml.prompts import PromptLearner
from ovml.utils.errors import UserError, beginning
from ovml.vocabulary import LabelVocabulary


def is_exported(name: str) -> bool:
    """Whether the name of a model is that of an exported file.

    >>> is_exported("a/model.onnx"), is_exported("openai/clip-vit-base-patch16")
    (True, False)
    """
    return name.lower().endswith(tuple(FORMATS.values()))


class ExportedModel(OpenVocabularyModel):
    """An exported file that scores images as the model it was made of: for `Tagger`, and nothing that learns.

    It knows the labels whose embeddings are in the file beside it, and no others, since the text tower is not exported.

    Args:
        path: `model.onnx`; `model.labels.safetensors` must be beside it. Files of torch.export are not loaded, since
            they may hold code.

    Raises:
        UserError: A file is missing or damaged, the two do not fit together, or onnxruntime is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        nn.Module.__init__(self)  # there are no towers to be made
        self.path = Path(path)
        traced = _open(self.path)
        self.run = traced.run
        self.image_processor = _image_processor(self.path, traced.metadata)
        found = read_label_embeddings(labels_path(self.path))
        self.labels_file = labels_path(self.path)
        self.vocabulary = LabelVocabulary(found.labels)
        self.calibration = self.adapted = self.scoring = self.label_cache = None
        self.register_buffer("label_embeds", found.embeds)
        self.image_encoder = _Content(self.path, labels_path(self.path))  # type: ignore[assignment]
        self.head = nn.Identity()  # type: ignore[assignment]
        advice = self._advice("--prompt TEMPLATE")
        self.prompt: Any = _NoText(f"prompt: {self.path.name} has no text tower; {advice}")
        _check_fit(self, found.embeds)

    label_embeds: Tensor

    @property
    def device(self) -> torch.device:
        """Files run on the CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Files take and give float32."""
        return torch.float32

    def encode_images(self, pixel_values: Tensor) -> Any:
        """Normalized images `[B, 3, H, W]`, of bytes or normalized ones: the file encodes and scores them in one."""
        return self.normalized(pixel_values)

    def embed_labels(self, labels: Labels = None, prompt: PromptLearner | None = None) -> Tensor:
        """Label embeddings `[L, D]` of the file beside the model.

        Raises:
            UserError: A label is not in it, or a prompt is given, which needs a text tower.
        """
        if prompt is not None:
            raise UserError(self.prompt.reason)
        rows = {name: row for row, name in enumerate(self._own.names)}
        names = self.vocabulary_of(labels).names
        if missing := [name for name in names if name not in rows]:
            others = f" and {len(missing) - 1:,} others are" if len(missing) > 1 else " is"
            advice = self._advice("--labels-file FILE")
            raise UserError(f"labels: {beginning(missing[0])!r}{others} not in {self.labels_file}; {advice}")
        return self.label_embeds[[rows[name] for name in names]]

    def score(self, features: Any, label_embeds: Tensor) -> Tensor:
        """Logits `[B, L]` of what `encode_images` gave."""
        return self.run(features, label_embeds)

    @property
    def _own(self) -> LabelVocabulary:
        assert self.vocabulary is not None
        return self.vocabulary

    def _advice(self, options: str) -> str:
        """The command that writes other label embeddings beside the file."""
        return f"'ovml embed-labels --model MODEL {options} --out {self.labels_file} --overwrite' embeds them anew"


class _Content(nn.Module):
    """The digest of files, where a model has its weights: an interrupted run continues with the same files only."""

    patch_source = None

    def __init__(self, path: Path, labels: Path) -> None:
        super().__init__()
        digest = hashlib.sha256()
        for part in filter(Path.is_file, (path, data_path(path), labels)):
            with part.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        self.register_buffer("content", torch.tensor(list(digest.digest()), dtype=torch.uint8))


class _NoText(nn.Module):
    """Stands where a model has its prompt."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    @property
    def text_encoder(self) -> Any:
        raise UserError(self.reason)


def _open(path: Path) -> Traced:
    if path.suffix.lower() != FORMATS["onnx"]:
        raise UserError(
            f"model {path}: is not loaded, since torch runs what such a file may hold; take an ONNX file, or the model"
        )
    if not path.is_file():
        raise UserError(f"model {path}: no such file; check the path, or write one with 'ovml export --out {path}'")
    try:
        traced = open_traced(path)
    except (UserError, OSError):
        raise
    except Exception as error:  # the runtimes have errors of their own
        raise UserError(f"model {path}: cannot be loaded ({reason(error)}); export the model again") from error
    if traced is None:
        raise UserError(f"model {path}: needs the package onnxruntime; pip install 'ovml[export]'")
    return traced


def _image_processor(path: Path, metadata: Mapping[str, str]) -> ImageProcessor:
    """The image preparation that an exported file describes; see `ovml.inference.export`."""
    try:
        found = {name: json.loads(value) for name, value in metadata.items() if name.startswith("image_")}
        found = {name.removeprefix("image_"): value for name, value in found.items()}
        found |= {name: tuple(found[name]) for name in ("mean", "std")}
        resize = found.pop("resize")
        return ImageProcessor(**found, resize=None if resize == found["size"] else resize)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"model {path}: its metadata do not say how images are prepared ({reason(error)}); export it anew"
        ) from error


def _check_fit(model: ExportedModel, embeds: Tensor) -> None:
    """Score a grey image, to see that the label embeddings are of this model's width."""
    side = model.image_processor.size
    try:
        model.run(torch.zeros(1, 3, side, side), embeds[:1])
    except Exception as error:  # the runtimes have errors of their own
        raise UserError(
            f"model {model.path}: does not take the label embeddings of {os.path.basename(model.labels_file)} "
            f"({reason(error)}); export both again, or write those of this model with ovml embed-labels"
        ) from error
