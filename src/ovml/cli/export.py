"""`ovml export`: a model as one file that runs without ovml."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovml.cli.options import Parser, add_scoring_options, at_least, chosen_labels
from ovml.utils.errors import UserError


def export_command(argv: list[str]) -> None:
    """Write image tower and head for onnxruntime or torch, and the label embeddings beside them."""
    args = make_parser().parse_args(argv[1:])
    names = chosen_labels(args)

    import transformers

    from ovml.inference.export import FORMATS, check_target, export_model
    from ovml.inference.tagger import load_model

    out = args.out or Path(f"model{FORMATS.get(args.format or 'onnx', '')}")
    format = check_target(out, args.format, args.overwrite)
    transformers.utils.logging.disable_progress_bar()
    model = load_model(args.model)
    if args.prompt is not None and names is None and model.vocabulary is None:
        raise UserError("--prompt: there are no labels to embed with it; give --labels 'a,b' or --labels-file FILE")
    exported = export_model(model, out, format, names, args.prompt, args.opset, args.overwrite)

    side, dim = model.image_spec.size, model.prompt.text_encoder.embed_dim
    print(f"{out}: {_megabytes(exported.path)}; pixel_values [B, 3, {side}, {side}], label_embeds [L, {dim}] -> logits")
    if exported.data is not None:
        print(f"{out}.data: {_megabytes(exported.data)}; the weights, keep it beside {out.name}")
    if exported.labels is not None:
        labels = names or model.vocabulary
        print(f"{out.with_name(exported.labels.name)}: label embeddings of {len(labels or ()):,} labels")
    if exported.difference is None:
        print("not checked: pip install onnxruntime, and export again")
    else:
        print(f"checked: logits differ from the model's by {exported.difference:.1e} at most")


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.1f} MB"


def make_parser() -> argparse.ArgumentParser:
    """The options of `ovml export`."""
    parser = Parser(
        prog="ovml export",
        description="Write image tower and head as one file, with the label embeddings as an input.",
    )
    add_scoring_options(parser)
    parser.add_argument(
        "--format", metavar="NAME", help="onnx or torch.export (default: what --out ends in, else onnx)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="model.onnx or model.pt2 (default: model.onnx)")
    parser.add_argument("--opset", type=at_least(1), metavar="N", help="ONNX operator set (default: torch's choice)")
    parser.add_argument("--overwrite", action="store_true", help="replace --out and its labels, whatever is there")
    return parser
