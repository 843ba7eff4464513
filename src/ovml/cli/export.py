"""`ovml export`: a model as one file that runs without ovml."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovml.cli.command import (
    Command,
    add_label_options,
    add_model_options,
    add_scoring_option,
    at_least,
    check_extra,
    check_needs_no_fit,
    chosen_labels,
)
from ovml.utils.console import show
from ovml.utils.errors import UserError
from ovml.utils.files import check_output
from ovml.utils.find_images import find_images

SUFFIXES = {"onnx": ".onnx", "torch.export": ".pt2"}
"""Endings of the formats' files, as in `ovml.inference.export`, which imports torch."""


class Export(Command):
    """Writes image tower and head for onnxruntime or torch, and the label embeddings beside them."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add labels, model, format and output."""
        add_label_options(parser)
        add_model_options(parser)
        add_scoring_option(parser)
        parser.add_argument(
            "--format", metavar="NAME", help=f"{' or '.join(SUFFIXES)} (default: by the ending of --out, else onnx)"
        )
        parser.add_argument("--out", type=Path, metavar="FILE", help="model.onnx or model.pt2 (default: model.onnx)")
        parser.add_argument(
            "--opset", type=at_least(1), metavar="N", help="ONNX operator set (default: torch's choice)"
        )
        parser.add_argument(
            "--quantize", choices=("int8",), help="int8: a smaller and faster file for CPUs, of 8-bit integers"
        )
        parser.add_argument(
            "--calibrate",
            action="append",
            metavar="FOLDER",
            help="images like those to be scored, which set the scales of --quantize (default: each call sets its own)",
        )
        parser.add_argument("--overwrite", action="store_true", help="overwrite --out and its labels")

    def run(self, args: argparse.Namespace) -> None:
        """Load the model, export it, compare the file with the model."""
        check_needs_no_fit(args.scoring)
        labels = chosen_labels(args)
        if args.format not in (None, *SUFFIXES):
            raise UserError(f"--format {args.format!r}: unknown; it is one of {', '.join(SUFFIXES)}")
        out = args.out or Path(f"model{SUFFIXES[args.format or 'onnx']}")
        check_output(out, [SUFFIXES[args.format]] if args.format else list(SUFFIXES.values()), args.overwrite)
        if out.suffix == SUFFIXES["onnx"]:
            check_extra("export", "onnx", "onnxscript")
        elif args.opset is not None:
            raise UserError("--opset: only the format onnx has one; leave it out")

        if args.quantize is not None and out.suffix != SUFFIXES["onnx"]:
            raise UserError("--quantize: only the format onnx can be quantized; leave it out")
        if args.quantize is not None:
            check_extra("export", "onnxruntime")
        elif args.calibrate is not None:
            raise UserError("--calibrate: sets the scales of --quantize int8; give both, or leave it out")
        images = None if args.calibrate is None else list(find_images(args.calibrate))

        from ovml.cli.models import chosen_model
        from ovml.inference.export import export_model

        model = chosen_model(args)
        if args.prompt is not None and labels is None and model.vocabulary is None:
            raise UserError("--prompt: there are no labels to embed with it; give --labels 'a,b' or --labels-file FILE")
        options = args.opset, args.overwrite, args.quantize, images
        exported = export_model(model, out, args.format, labels, args.prompt, *options)

        side, shape = model.image_processor.size, ", ".join(map(str, model.label_shape))
        tensors = f"pixel_values [B, 3, {side}, {side}], label_embeds [L, {shape}] -> logits"
        show(f"{out}: {_megabytes(exported.path)}; {tensors}")
        if exported.data is not None:
            data = out.with_name(exported.data.name)
            show(f"{data}: {_megabytes(exported.data)}; the weights, keep it beside {out.name}")
        if exported.labels is not None:
            number = len(labels or model.vocabulary or ())
            show(f"{out.with_name(exported.labels.name)}: label embeddings of {number:,} labels")
        if exported.difference is None:
            show("not checked: pip install onnxruntime, and export again")
        else:
            of = "" if exported.parity is None else " of the file in float32"
            show(f"checked: logits{of} differ from the model's by {exported.difference:.1e} at most")
        if exported.parity is not None:
            show(exported.parity.table())


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.1f} MB"
