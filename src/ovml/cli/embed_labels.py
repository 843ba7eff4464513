"""`ovml embed-labels`: label names in, a file of their embeddings out."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovml.cli.command import Command, add_label_options, add_model_options, chosen_labels
from ovml.utils.console import show
from ovml.utils.files import check_output
from ovml.utils.process import starting


class EmbedLabels(Command):
    """Embeds the labels that are given, or the model's own."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add labels, model and output."""
        add_label_options(parser)
        add_model_options(parser, device=True, precision=True)
        parser.add_argument(
            "--out",
            type=Path,
            default=Path("labels.safetensors"),
            metavar="FILE",
            help="safetensors: label_embeds [L, D], names in the metadata (default: labels.safetensors)",
        )
        parser.add_argument("--overwrite", action="store_true", help="overwrite --out")

    def run(self, args: argparse.Namespace) -> None:
        """Read the labels, load the model, embed, write."""
        check_output(args.out, [".safetensors"], args.overwrite)
        labels = chosen_labels(args)

        with starting():
            from ovml.cli.models import model_and_labels
            from ovml.inference.label_embeddings import write_label_embeddings
            from ovml.inference.tagger import Tagger

            tagger = Tagger(*model_and_labels(args, labels), prompt=args.prompt)
        embeds = tagger.label_embeds()
        prompt = type(tagger.model.prompt).__name__ if args.prompt is None else " | ".join(args.prompt)
        write_label_embeddings(args.out, tagger.labels, embeds, {"model": args.model, "prompt": prompt})
        show(f"label embeddings: {args.out} ({len(embeds):,} labels, {embeds.shape[1]} numbers each)")
