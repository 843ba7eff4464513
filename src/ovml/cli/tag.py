"""`ovml tag`: images in, ranked labels on the terminal or in a file."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ovml.cli.options import (
    Parser,
    add_device_option,
    add_scoring_options,
    at_least,
    chosen_labels,
    chosen_model,
    on_device,
)
from ovml.utils.console import notice, shows_progress
from ovml.utils.errors import UserError
from ovml.utils.images import find_images

if TYPE_CHECKING:
    from ovml.inference.tag_output import Written
    from ovml.inference.tagger import Tagger


def tag(argv: list[str]) -> None:
    """Rank labels for images; print them as a table or write them to a file."""
    args = make_parser().parse_args(argv[1:])
    if not args.images and args.images_file is None:
        raise UserError("the following arguments are required: IMAGE or --images-file; see 'ovml tag --help'")
    names = chosen_labels(args)
    images: Iterator[Path | str] = find_images(args.images)
    if args.images_file is not None:
        images = chain(images, _listed(args.images_file))
    if args.out is not None:
        from ovml.inference.tag_output import check_out

        check_out(args.out, args.overwrite)

    from ovml.inference.tagger import Tagger

    model = on_device(chosen_model(args, names), args.device)
    tagger = Tagger(
        model,
        names,
        top_k=args.top_k,
        batch_size=args.batch_size,
        threshold=args.threshold,
        num_workers=args.num_workers,
        prompt=args.prompt,
        probabilities=args.probabilities,
    )
    if args.out is None:
        _print(tagger, images)
    else:
        _write(tagger, images, args)


def make_parser() -> argparse.ArgumentParser:
    """The options of `ovml tag`."""
    parser = Parser(prog="ovml tag", description="Rank labels for images.")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="images, folders of images, or quoted patterns such as 'a/**/*.jpg'"
    )
    parser.add_argument("--images-file", metavar="FILE", help="paths of images, one a line; - for standard input")
    add_scoring_options(parser)
    parser.add_argument("--top-k", type=at_least(1), default=5, metavar="K", help="labels per image (default: 5)")
    parser.add_argument(
        "--threshold",
        type=_threshold,
        metavar="S",
        help="least score of a label that is given out; 'calibrated': the model's own thresholds of probabilities",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="calibrated probabilities in the place of scores; of models that were validated on labelled images",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write tags.jsonl, tags.csv or tags.parquet; the same command goes on where it was interrupted",
    )
    parser.add_argument("--overwrite", action="store_true", help="begin --out anew, whatever is there")
    parser.add_argument(
        "--batch-size", type=at_least(1), default=32, metavar="B", help="images run at once (default: 32)"
    )
    parser.add_argument(
        "--num-workers",
        type=at_least(0),
        metavar="N",
        help="threads that read images while the model runs (default: one per core, eight at most)",
    )
    add_device_option(parser)
    return parser


def _threshold(text: str) -> float | Literal["calibrated"]:
    if text == "calibrated":
        return "calibrated"
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number or 'calibrated', got {text!r}") from error


def _listed(file: str) -> Iterator[str]:
    """Paths in a file, one a line, read as they are needed."""
    if file == "-":
        return _lines(sys.stdin.buffer)
    try:
        return _lines(open(file, "rb"))
    except OSError as error:
        raise UserError(f"--images-file {file}: cannot be read ({error.strerror}); check the path") from error


def _lines(file: Iterable[bytes]) -> Iterator[str]:
    for line in file:
        if path := line.rstrip(b"\r\n"):
            yield path.decode("utf-8", "surrogateescape")


def _print(tagger: Tagger, images: Iterable[Path | str]) -> None:
    from rich.console import Console
    from rich.markup import escape

    from ovml.inference.tag_files import utf8
    from ovml.metrics.tables import tag_table

    console = Console()
    errors = number = 0
    for image, tags in tagger.tag(images, on_error="row"):
        number += 1
        if isinstance(tags, UserError):
            errors += 1
            console.print(f"[red]{escape(utf8(str(tags)))}[/red]", soft_wrap=True, highlight=False)
            continue
        console.print(f"[bold]{escape(utf8(str(image)))}[/bold]", soft_wrap=True, highlight=False)
        console.print(tag_table(tags))
    if errors:
        notice(f"{errors:,} of {number:,} images could not be read")


def _write(tagger: Tagger, images: Iterable[Path | str], args: argparse.Namespace) -> None:
    with _Progress(_total(args)) as progress:
        try:
            written = tagger.write(images, args.out, args.overwrite, progress.update)
        except KeyboardInterrupt:
            notice("the same command goes on from here")
            raise
    before = f" ({written.resumed:,} of them before)" if written.resumed else ""
    lost = f"; {written.errors:,} could not be read" if written.errors else ""
    notice(f"{args.out}: {written.rows:,} images{before}, {progress.rate:.1f} images/s{lost}")


def _total(args: argparse.Namespace) -> int | None:
    """The number of images, where it is known without searching through folders."""
    if args.images_file == "-" or not all(map(os.path.isfile, args.images)):
        return None
    if args.images_file is None:
        return len(args.images)
    with open(args.images_file, "rb") as file:
        return len(args.images) + sum(1 for _ in _lines(file))


class _Progress:
    """A bar on the terminal's error stream with images per second; without a terminal, no bar."""

    def __init__(self, total: int | None) -> None:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        self._bar = progress.Progress(
            progress.BarColumn(),
            progress.TextColumn("{task.completed:,} images"),
            progress.TextColumn("{task.fields[rate]:.1f} images/s"),
            progress.TextColumn("{task.fields[errors]}"),
            progress.TimeElapsedColumn(),
            *([] if total is None else [progress.TimeRemainingColumn()]),
            console=console,
            transient=True,
            disable=not shows_progress(),
        )
        self._task = self._bar.add_task("", total=total, rate=0.0, errors="")
        self._start: float | None = None
        self.rate = 0.0

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, written: Written) -> None:
        """Show the counts so far."""
        if self._start is None:
            self._start = time.monotonic()
            if written.resumed:
                notice(f"going on after {written.resumed:,} images of an interrupted run")
        else:
            self.rate = (written.rows - written.resumed) / max(time.monotonic() - self._start, 1e-9)
        errors = f"{written.errors:,} unreadable" if written.errors else ""
        self._bar.update(self._task, completed=written.rows, rate=self.rate, errors=errors)
