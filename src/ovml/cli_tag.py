"""`ovml tag`: images in, ranked labels on the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ovml.checkpoints import DEMO
from ovml.errors import UserError
from ovml.images import find_images
from ovml.vocabulary import LabelVocabulary, check_names, read_names


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see 'ovml tag --help'")


def tag(argv: list[str]) -> None:
    """Rank labels for images and print them as a table."""
    parser = _Parser(prog="ovml tag", description="Rank labels for images.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="images or folders of images")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", metavar="A,B,...", help="label names, separated by commas")
    labels.add_argument("--labels-file", type=Path, metavar="FILE", help="label names, one a line")
    parser.add_argument(
        "--model",
        default=DEMO,
        help="run folder or checkpoint of ovml fit, or a CLIP checkpoint's name such as openai/clip-vit-base-patch16 "
        f"(default: {DEMO}, which knows drawn shapes only)",
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="labels per image (default: 5)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="images run at once (default: 32)")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda (default: cpu)")
    args = parser.parse_args(argv[1:])
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1; got {args.batch_size}")

    names: Sequence[str] | LabelVocabulary | None = None
    if args.labels_file is not None:
        names = read_names(args.labels_file)
    elif args.labels is not None:
        names = check_names([name for name in args.labels.split(",") if name.strip()], where="--labels")
    images = find_images(args.images)

    import transformers
    from rich.console import Console
    from rich.markup import escape

    from ovml.reporting import tag_table
    from ovml.tagging import Tagger, load_model

    transformers.utils.logging.disable_progress_bar()
    if args.model == DEMO:
        print(f"ovml: {DEMO} knows drawn shapes only; for photographs give --model", file=sys.stderr)
    model = load_model(args.model)
    if names is None:
        if model.vocabulary is None:
            raise UserError(
                "no labels: give --labels 'a,b' or --labels-file FILE; this model has no vocabulary of its own"
            )
        names = model.vocabulary
    try:
        model = model.to(args.device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {args.device}: not usable here ({str(error).splitlines()[0]}); try cpu") from error
    tagger = Tagger(model, names, top_k=args.top_k, batch_size=args.batch_size)
    console = Console()
    for image, tags in tagger.tag(images):
        console.print(f"[bold]{escape(str(image))}[/bold]", soft_wrap=True, highlight=False)
        console.print(tag_table(tags))
