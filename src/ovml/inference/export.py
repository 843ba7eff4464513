"""A model as one file that runs without ovml: image tower and head, the label embeddings as an input.

model.onnx                 `pixel_values [B, 3, H, W]`, `label_embeds [L, D]` -> `logits [B, L]`; or model.pt2, the same
model.onnx.data            the weights, where they are too large for one ONNX file
model.labels.safetensors   `label_embeds`, and the labels' names in its metadata, where there are labels
"""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ovml.encoders.execution import Execution
from ovml.inference.label_embeddings import write_label_embeddings
from ovml.inference.tagger import Tagger
from ovml.utils.errors import UserError

if TYPE_CHECKING:
    from ovml.classifier import OVMultiLabelClassifier
    from ovml.prompts import PromptLearner
    from ovml.vocabulary import LabelVocabulary

FORMATS = {"onnx": ".onnx", "torch.export": ".pt2"}
TOLERANCE = 1e-4
"""Largest difference from the model's own logits; of the largest logit's magnitude, where that is more than 1."""
CHECKED_SIZES = ((1, 2), (3, 500))
"""Numbers of images and of labels that a written file is checked on; it was traced with others."""

Run = Callable[[Tensor, Tensor], Tensor]


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: The model.
        labels: Label embeddings and names; `None` where there are no labels.
        data: The weights, where they did not fit into the model's file; the two belong together.
        difference: Largest difference from the model's own logits, on random images and label embeddings (see
            `TOLERANCE`). `None`: not checked, since onnxruntime is not installed.
    """

    path: Path
    labels: Path | None
    data: Path | None
    difference: float | None


class Scorer(nn.Module):
    """Image tower and head of a model, copied: in float32, on the CPU, for inference.

    Args:
        model: Left as it is.
    """

    def __init__(self, model: OVMultiLabelClassifier) -> None:
        super().__init__()
        self.image_encoder = copy.deepcopy(model.image_encoder)
        self.image_encoder.execution = Execution()
        self.tail = self.image_encoder.tail(0)
        self.head = copy.deepcopy(model.head)
        self.to("cpu", torch.float32).eval().requires_grad_(False)

    def forward(self, pixel_values: Tensor, label_embeds: Tensor) -> Tensor:
        """Score normalised images `[B, 3, H, W]` against label embeddings `[L, D]`; logits `[B, L]`."""
        logits: Tensor = self.head(self.tail(self.image_encoder.trunk(pixel_values, 0)), label_embeds)
        return logits


def export_model(
    model: OVMultiLabelClassifier,
    path: str | Path,
    format: str | None = None,
    labels: Sequence[str] | LabelVocabulary | None = None,
    prompt: PromptLearner | str | Sequence[str] | None = None,
    opset: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a model for use without ovml. The file appears when it is complete and its logits are the model's.

    Args:
        model: Any one; what it is on and its precision do not matter, the file is in float32.
        path: `.onnx` or `.pt2`.
        format: `onnx` or `torch.export`. Default: what the path ends in.
        labels: Written beside the model. Default: the model's own vocabulary, if it has one. The file scores any
            others as well.
        prompt: Embeds the labels in the place of the model's own; see `Tagger`.
        opset: ONNX operator set. Default: torch's choice.
        overwrite: Replace the file and what belongs to it: labels and data.

    Raises:
        UserError: The path will not do, a package is missing, the head cannot be exported, or what was written gives
            other logits than the model.

    Example:
        >>> import tempfile
        >>> from ovml import OVMultiLabelClassifier
        >>> model = OVMultiLabelClassifier("ovml-demo", labels=["red circle", "blue star"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_model(model, f"{folder}/model.pt2").labels.name
        'model.labels.safetensors'
    """
    path = Path(os.path.abspath(path))
    format = check_target(path, format, overwrite)
    if opset is not None and format != "onnx":
        raise UserError("opset: only the format onnx has one; leave it out")
    if format == "onnx":
        for package in ("onnx", "onnxscript"):
            _package(package)
    vocabulary = model.vocabulary if labels is None else model.vocabulary_of(labels)
    if vocabulary is None and prompt is not None:
        raise UserError("prompt: there are no labels to embed with it; give labels too")
    embeds = None if vocabulary is None else Tagger(model, vocabulary, prompt=prompt).label_embeds()

    metadata = _metadata(model)
    write, load = (_write_onnx, _load_onnx) if format == "onnx" else (_write_program, _load_program)
    aside = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        written = aside / path.name
        with _exporting(model.head, format):
            scorer = Scorer(model)
            write(_trace(scorer, model), written, metadata, opset)
            run = load(written)
            difference = None if run is None else _difference(scorer, run, model, path.name)
        if vocabulary is not None and embeds is not None:
            write_label_embeddings(labels_path(written), vocabulary.names, embeds, metadata)
        labels_file, data_file = _put_in_place(written, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(path, labels_file, data_file, difference)


def check_target(path: Path, format: str | None, overwrite: bool) -> str:
    """Return the format of a file to be written, or say why it cannot be.

    Raises:
        UserError: The format is unknown, the path ends in something else, or is there already.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"format {format!r}: unknown; it is one of {', '.join(FORMATS)}")
    suffixes = [suffix for name, suffix in FORMATS.items() if format in (None, name)]
    if path.suffix not in suffixes:
        what = "cannot tell what to write" if format is None else f"a file of the format {format} is named otherwise"
        raise UserError(f"{path}: {what}; let the name end in {' or '.join(suffixes)}")
    for file in (path, labels_path(path), data_path(path)):
        if file.is_dir():
            raise UserError(f"{file}: is a folder; give another name")
        if file.exists() and not overwrite:
            raise UserError(f"{file}: exists already; give another name, or use --overwrite to replace it")
    return next(name for name, suffix in FORMATS.items() if suffix == path.suffix)


def labels_path(path: Path) -> Path:
    """Where the label embeddings of an exported model are.

    >>> labels_path(Path("a/model.onnx")).name
    'model.labels.safetensors'
    """
    return path.with_suffix(".labels.safetensors")


def data_path(path: Path) -> Path:
    """Where the weights of an exported model are if they are too large for its own file."""
    return path.with_name(path.name + ".data")


def _metadata(model: OVMultiLabelClassifier) -> dict[str, str]:
    """How to prepare pictures for the file, and where it is from; texts, numbers as JSON."""
    from ovml import __version__

    spec = model.image_spec
    return {
        "image_size": json.dumps(spec.size),
        "image_mean": json.dumps(list(spec.mean)),
        "image_std": json.dumps(list(spec.std)),
        "image_squash": json.dumps(spec.squash),
        "image_resize": json.dumps(spec.short_side),
        "image_resample": json.dumps(int(spec.resample)),
        "head": type(model.head).__qualname__,
        "ovml_version": __version__,
    }


def _trace(scorer: Scorer, model: OVMultiLabelClassifier) -> torch.export.ExportedProgram:
    sizes = {"pixel_values": {0: torch.export.Dim("batch")}, "label_embeds": {0: torch.export.Dim("labels")}}
    inputs = _random_inputs(model, 2, 5, torch.Generator().manual_seed(0))
    program = torch.export.export(scorer, inputs, dynamic_shapes=sizes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it would tell the paths of this machine's files
    return program


def _random_inputs(
    model: OVMultiLabelClassifier, num_images: int, num_labels: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    side = model.image_spec.size
    pixel_values = torch.randn(num_images, 3, side, side, generator=generator)
    return pixel_values, torch.randn(num_labels, model.prompt.text_encoder.embed_dim, generator=generator)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str], opset: int | None) -> None:
    names: dict[str, Any] = {
        "input_names": ["pixel_values", "label_embeds"],
        "output_names": ["logits"],
        "dynamic_shapes": {"pixel_values": {0: "batch"}, "label_embeds": {0: "labels"}},
    }
    onnx = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, **names)
    assert onnx is not None
    found = onnx.model.opset_imports.get("")
    if opset not in (None, found):
        raise UserError(f"opset {opset}: torch can give this model in operator set {found} only")
    onnx.model.metadata_props.update(metadata)
    onnx.save(path, external_data=False)  # it is all the same, where one file cannot hold the weights


def _load_onnx(path: Path) -> Run | None:
    if find_spec("onnxruntime") is None:
        return None
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(pixel_values: Tensor, label_embeds: Tensor) -> Tensor:
        inputs = {"pixel_values": pixel_values.numpy(), "label_embeds": label_embeds.numpy()}
        return torch.from_numpy(session.run(["logits"], inputs)[0])

    return run


def _write_program(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str], _: int | None) -> None:
    torch.export.save(program, path, extra_files={"ovml.json": json.dumps(metadata)})


def _load_program(path: Path) -> Run:
    module: Run = torch.export.load(path).module()
    return module


def _difference(scorer: Scorer, run: Run, model: OVMultiLabelClassifier, name: str) -> float:
    """Compare what was written with the model.

    Raises:
        UserError: It cannot be run, or its logits are others.
    """
    generator = torch.Generator().manual_seed(1)
    largest = 0.0
    for num_images, num_labels in CHECKED_SIZES:
        inputs = _random_inputs(model, num_images, num_labels, generator)
        sizes = f"{num_images} images and {num_labels} labels"
        expected = scorer(*inputs)
        try:
            found = run(*inputs)
        except Exception as error:  # the runtimes have errors of their own
            raise UserError(f"{name}: what was exported fails on {sizes} ({_reason(error)}); not written") from error
        if found.shape != expected.shape:
            raise UserError(f"{name}: what was exported gives {list(found.shape)} for {sizes}; not written")
        same = (found == expected) | (found.isnan() & expected.isnan())
        scale = max(1.0, expected.nan_to_num(0, 0, 0).abs().max().item())
        difference = (found - expected).abs().masked_fill(same, 0).max().item() / scale
        if not difference <= TOLERANCE:
            raise UserError(
                f"{name}: what was exported differs from the model by {difference:.2g} on {sizes}; not written; "
                f"write {type(scorer.head).__qualname__}.forward with torch's operations alone"
            )
        largest = max(largest, difference)
    return largest


def _put_in_place(written: Path, path: Path) -> tuple[Path | None, Path | None]:
    """Rename files into their places, the model last; returns those of labels and data."""
    beside: list[Path | None] = []
    for place in (labels_path, data_path):
        source, target = place(written), place(path)
        if source.exists():
            os.replace(source, target)
        else:
            target.unlink(missing_ok=True)  # of the model that is replaced
        beside.append(target if target.exists() else None)
    os.replace(written, path)
    return beside[0], beside[1]


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"format onnx: needs the package {name}; pip install 'ovml[export]'") from error


@contextmanager
def _exporting(head: nn.Module, format: str) -> Iterator[None]:
    """Leave out what torch and onnxscript tell about themselves, and turn their errors into one line."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                yield
    except (UserError, OSError):
        raise
    except Exception as error:  # tracing may end in any
        name = f"{type(head).__module__}.{type(head).__qualname__}"
        raise UserError(
            f"{name}: cannot be exported as {format} ({_reason(error)}); write its forward with torch's operations "
            "alone, for any number of images and labels"
        ) from error
    finally:
        logging.disable(before)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
