"""`ovml embed-labels`: label names in, a file of their embeddings out."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovml.cli.options import Parser, add_device_option, add_model_options, chosen_model, on_device
from ovml.utils.errors import UserError
from ovml.vocabulary import read_vocabulary


def embed_labels(argv: list[str]) -> None:
    """Embed the names in a file, or the model's own."""
    args = make_parser().parse_args(argv[1:])
    if args.out.suffix != ".safetensors":
        raise UserError(f"--out {args.out}: cannot tell what to write; let the name end in .safetensors")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"--out {args.out}: exists; give another name or --overwrite")
    names = None if args.names is None else read_vocabulary(args.names)

    from ovml.inference.label_embeddings import write_label_embeddings
    from ovml.inference.tagger import Tagger

    tagger = Tagger(on_device(chosen_model(args, names), args.device), names, prompt=args.prompt)
    embeds = tagger.label_embeds()
    prompt = type(tagger.model.prompt).__name__ if args.prompt is None else " | ".join(args.prompt)
    write_label_embeddings(args.out, tagger.labels, embeds, {"model": args.model, "prompt": prompt})
    print(f"label embeddings: {args.out} ({len(embeds):,} labels, {embeds.shape[1]} numbers each)")


def make_parser() -> argparse.ArgumentParser:
    """The options of `ovml embed-labels`."""
    parser = Parser(prog="ovml embed-labels", description="Write the embeddings of label names.")
    parser.add_argument(
        "names",
        type=Path,
        nargs="?",
        metavar="NAMES",
        help="label names, one a line; or a CSV file with columns id,name (default: the model's own)",
    )
    add_model_options(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("labels.safetensors"),
        metavar="FILE",
        help="safetensors: label_embeds [L, D], names in the metadata (default: labels.safetensors)",
    )
    add_device_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    return parser
