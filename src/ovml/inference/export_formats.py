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
from typing import Any

import torch
from torch import Tensor, nn

from ovml.utils.errors import UserError, all_lines

FORMATS = {"onnx": ".onnx", "torch.export": ".pt2"}
"""File suffix of each format."""

Run = Callable[[Tensor, Tensor], Tensor]
"""`(pixel_values, label_embeds) -> logits`."""


def check_packages(format: str) -> None:
    """Raise a `UserError` if a package that writes the format is missing."""
    for package in ("onnx", "onnxscript") if format == "onnx" else ():
        try:
            import_module(package)
        except ImportError as error:
            raise UserError(f"format onnx: needs the package {package}; pip install 'ovml[export]'") from error


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
        torch.export.save(program, buffer, extra_files={"ovml.json": json.dumps(metadata)})
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


def load_traced(path: Path) -> Run | None:
    """Load a file that `write_traced` wrote; `None` if onnxruntime is needed and not installed."""
    if path.suffix.lower() == FORMATS["torch.export"]:
        module: Run = torch.export.load(path).module()
        return module
    if find_spec("onnxruntime") is None:
        return None
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(pixel_values: Tensor, label_embeds: Tensor) -> Tensor:
        inputs = {"pixel_values": pixel_values.numpy(), "label_embeds": label_embeds.numpy()}
        return torch.from_numpy(session.run(["logits"], inputs)[0])

    return run


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
