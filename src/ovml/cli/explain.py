"""`ovml explain`: a figure that shows where in an image its best labels are found."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovml.cli.command import (
    Command,
    add_label_options,
    add_model_options,
    add_scoring_option,
    at_least,
    check_file,
    check_needs_no_fit,
    chosen_labels,
)
from ovml.utils.console import show
from ovml.utils.errors import UserError
from ovml.utils.files import check_output
from ovml.utils.images import load_image
from ovml.utils.process import starting


class Explain(Command):
    """Draws why labels are ranked as they are."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the image, labels, model and figure."""
        parser.add_argument("image", type=Path, metavar="IMAGE")
        add_label_options(parser)
        add_model_options(parser, device=True, precision=True)
        add_scoring_option(parser)
        parser.add_argument(
            "--top-k", type=at_least(1), default=8, metavar="N", help="labels drawn, best first (default: 8)"
        )
        parser.add_argument(
            "--out", type=Path, default=Path("explain.png"), metavar="FILE", help="the figure (default: explain.png)"
        )
        parser.add_argument("--font", type=Path, metavar="FILE", help=".ttf or .otf file, for labels in other scripts")

    def run(self, args: argparse.Namespace) -> None:
        """Read the image, load the model, draw."""
        check_output(args.out, [".png"], overwrite=True)
        if args.out.exists() and args.image.exists() and args.out.samefile(args.image):
            raise UserError(f"--out {args.out}: is the image itself; give another name")
        check_file("--font", args.font)
        check_needs_no_fit(args.scoring)
        labels = chosen_labels(args)
        image = load_image(args.image)

        with starting():
            from ovml.cli.models import model_and_labels
            from ovml.inference.explain import explain
            from ovml.metrics.plots.files import save_png

            model, labels = model_and_labels(args, labels)
        figure = explain(model, image, labels, args.top_k, args.prompt, args.font)
        show(f"figure: {save_png(figure, args.out)}")
