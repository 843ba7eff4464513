"""Writing and reading traced models: ONNX and torch.export."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ovml.utils.errors import UserError, all_lines

FORMATS = {"onnx": ".onnx", "torch.export": ".pt2"}
"""File suffix of each format."""

METADATA = "ovml.json"
"""Extra file of `torch.export` with the metadata."""

Run = Callable[[Tensor, Tensor], Tensor]
"""`(pixel_values, label_embeds) -> logits`."""


def check_packages(format: str, quantized: bool = False) -> None:
    """Raise a `UserError` if a package that writes the format is missing."""
    for package in ("onnx", "onnxscript", *(["onnxruntime"] if quantized else [])) if format == "onnx" else ():
        try:
            import_module(package)
        except ImportError as error:
            what = "quantize" if package == "onnxruntime" else "format onnx"
            raise UserError(f"{what}: needs the package {package}; pip install 'ovml[export]'") from error


def write_traced(
    scorer: nn.Module, inputs: tuple[Tensor, Tensor], path: Path, metadata: Mapping[str, str], opset: int | None
) -> None:
    """Trace a module and write it in the format of the path's suffix.

    Args:
        scorer: `(pixel_values [B, 3, H, W], label_embeds [L, D]) -> logits [B, L]`.
        inputs: Example inputs; `B` and `L` stay free.
        path: The file.
        metadata: Text by name, stored in the file.
        opset: ONNX operator set. Default: torch's choice.

    Raises:
        UserError: torch cannot write the model in this operator set.
    """
    sizes = {"pixel_values": {0: torch.export.Dim("batch")}, "label_embeds": {0: torch.export.Dim("labels")}}
    program = torch.export.export(scorer, inputs, dynamic_shapes=sizes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it contains file paths of this machine
    if path.suffix.lower() == FORMATS["torch.export"]:
        buffer = io.BytesIO()  # torch's own writing to a file aborts the process if the disk is full
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
        path.write_bytes(buffer.getbuffer())
        return
    names: dict[str, Any] = {
        "input_names": ["pixel_values", "label_embeds"],
        "output_names": ["logits"],
        "dynamic_shapes": {"pixel_values": {0: "batch"}, "label_embeds": {0: "labels"}},
    }
    onnx = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, **names)
    assert onnx is not None
    found = onnx.model.opset_imports.get("")
    if opset not in (None, found):
        raise UserError(f"opset {opset}: torch can write this model in operator set {found} only")
    onnx.model.metadata_props.update(metadata)
    onnx.save(path, external_data=False)  # torch writes external data anyway if one file cannot hold the weights


class Traced(NamedTuple):
    """A file that was loaded.

    Attributes:
        run: Scores images.
        metadata: Text by name.
    """

    run: Run
    metadata: Mapping[str, str]


def load_traced(path: Path) -> Run | None:
    """Load a file that `write_traced` wrote; `None` if onnxruntime is needed and not installed."""
    traced = open_traced(path)
    return None if traced is None else traced.run


def open_traced(path: Path) -> Traced | None:
    """Load a file and its metadata; `None` if onnxruntime is needed and not installed."""
    if path.suffix.lower() == FORMATS["torch.export"]:
        extra = {METADATA: ""}
        module = torch.export.load(path, extra_files=extra).module()
        return Traced(module.__call__, json.loads(extra[METADATA]))
    if find_spec("onnxruntime") is None:
        return None
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that read images need the cores
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(pixel_values: Tensor, label_embeds: Tensor) -> Tensor:
        inputs = {"pixel_values": pixel_values.numpy(), "label_embeds": label_embeds.numpy()}
        return torch.from_numpy(session.run(["logits"], inputs)[0])

    return Traced(run, session.get_modelmeta().custom_metadata_map)


def labels_path(path: Path) -> Path:
    """Path of the label embeddings of an exported model.

    >>> labels_path(Path("a/model.onnx")).name
    'model.labels.safetensors'
    """
    return path.with_suffix(".labels.safetensors")


def data_path(path: Path) -> Path:
    """Path of the weights of an exported model if they are too large for its own file."""
    return path.with_name(path.name + ".data")


@contextmanager
def tracing(head: nn.Module, format: str) -> Iterator[None]:
    """Silence torch and onnxscript, and turn their errors into one-line `UserError`s that name the head."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                yield
    except (UserError, OSError):
        raise
    except Exception as error:  # torch.export raises errors of any type
        name = f"{type(head).__module__}.{type(head).__qualname__}"
        raise UserError(
            f"{name}: cannot be exported as {format} ({reason(error)}); write its forward with torch's operations "
            "alone, for any number of images and labels"
        ) from error
    finally:
        logging.disable(before)


def reason(error: Exception) -> str:
    """Type and message of an error in one line.

    >>> reason(KeyError("a"))
    "KeyError: 'a'"
    """
    return f"{type(error).__name__}: {all_lines(error)[:200]}"
