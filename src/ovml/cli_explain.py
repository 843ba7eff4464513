"""`ovml explain`: one picture that shows where in an image its best labels are found."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from ovml.checkpoints import DEMO
from ovml.errors import UserError
from ovml.vocabulary import LabelVocabulary, check_names, read_vocabulary


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see '{self.prog} --help'")


def explain_command(argv: list[str]) -> None:
    """Draw why labels were ranked as they were."""
    args = _parser().parse_args(argv[1:])
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: cannot tell what to write; let the name end in .png")
    if args.out.exists() and args.image.exists() and args.out.samefile(args.image):
        raise UserError(f"--out {args.out}: is the image itself; give another name")
    names: LabelVocabulary | None = None
    if args.labels_file is not None:
        names = read_vocabulary(args.labels_file)
    elif args.labels is not None:
        names = LabelVocabulary(check_names([n for n in args.labels.split(",") if n.strip()], where="--labels"))

    import transformers

    from ovml.images import load_image
    from ovml.plots.explain import explain
    from ovml.plots.files import save_png
    from ovml.tagging import load_model

    transformers.utils.logging.disable_progress_bar()
    image = load_image(args.image)
    if args.model == DEMO:
        print(f"ovml: {DEMO} knows drawn shapes only; for photographs give --model", file=sys.stderr)
    model = load_model(args.model)
    if names is None and model.vocabulary is None:
        raise UserError("no labels: give --labels 'a,b' or --labels-file FILE; this model has no vocabulary of its own")
    picture = explain(model, image, names, args.top_k, args.prompt, args.font)
    print(f"picture: {save_png(picture, args.out)}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ovml explain", description="Show where in an image its best labels are found.")
    parser.add_argument("image", type=Path, metavar="IMAGE")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", metavar="A,B,...", help="label names, separated by commas")
    labels.add_argument(
        "--labels-file", type=Path, metavar="FILE", help="label names, one a line; or a CSV file with columns id,name"
    )
    parser.add_argument(
        "--model",
        default=DEMO,
        help="run folder or checkpoint of ovml fit, or a CLIP checkpoint's name such as openai/clip-vit-base-patch16 "
        f"(default: {DEMO}, which knows drawn shapes only)",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEMPLATE",
        help="such as 'a photo of a {}', in the place of the model's own; several are averaged",
    )
    parser.add_argument("--top-k", type=_positive, default=8, metavar="N", help="labels drawn, best first (default: 8)")
    parser.add_argument(
        "--out", type=Path, default=Path("explain.png"), metavar="FILE", help="the picture (default: explain.png)"
    )
    parser.add_argument("--font", type=Path, metavar="FILE", help="a .ttf or .otf file, for labels in other scripts")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)
