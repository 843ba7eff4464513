"""`ovml explain`: one picture that shows where in an image its best labels are found."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovml.cli.options import Parser, add_scoring_options, at_least, chosen_labels, chosen_model
from ovml.utils.errors import UserError


def explain_command(argv: list[str]) -> None:
    """Draw why labels were ranked as they were."""
    args = make_parser().parse_args(argv[1:])
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: cannot tell what to write; let the name end in .png")
    if args.out.exists() and args.image.exists() and args.out.samefile(args.image):
        raise UserError(f"--out {args.out}: is the image itself; give another name")
    names = chosen_labels(args)

    from ovml.inference.explain import explain
    from ovml.metrics.plots.files import save_png
    from ovml.utils.images import load_image

    image = load_image(args.image)
    model = chosen_model(args, names)
    picture = explain(model, image, names, args.top_k, args.prompt, args.font)
    print(f"picture: {save_png(picture, args.out)}")


def make_parser() -> argparse.ArgumentParser:
    """The options of `ovml explain`."""
    parser = Parser(prog="ovml explain", description="Show where in an image its best labels are found.")
    parser.add_argument("image", type=Path, metavar="IMAGE")
    add_scoring_options(parser)
    parser.add_argument(
        "--top-k", type=at_least(1), default=8, metavar="N", help="labels drawn, best first (default: 8)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("explain.png"), metavar="FILE", help="the picture (default: explain.png)"
    )
    parser.add_argument("--font", type=Path, metavar="FILE", help="a .ttf or .otf file, for labels in other scripts")
    return parser
