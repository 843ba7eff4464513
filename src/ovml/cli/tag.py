"""`ovml tag`: images in, ranked labels on the terminal, in a file, or beside each image."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from ovml.cli.command import (
    Command,
    add_label_options,
    add_model_options,
    add_scoring_option,
    at_least,
    check_needs_no_fit,
    chosen_labels,
    several_names,
)
from ovml.cli.export import SUFFIXES as EXPORTED
from ovml.cli.parsing import LONGEST
from ovml.utils.console import notice
from ovml.utils.errors import UserError
from ovml.utils.files import check_output
from ovml.utils.find_images import find_images
from ovml.utils.lists import read_paths
from ovml.utils.process import starting
from ovml.vocabulary import group_columns, labels_below, packaged_parents

SUFFIXES = (".jsonl", ".csv", ".parquet")
"""Endings of the files of tags, as in `ovml.inference.tag_files`, which imports torch."""

XMP_NAMES = ("photo.jpg.xmp", "photo.xmp")
"""Names of sidecars, as in `ovml.inference.xmp`, which imports NumPy and Pillow."""

FORMATS = ("table", "tsv", "jsonl")
"""Forms of what is printed: for people; lines `image, label, score` separated by tabs; rows as in `tags.jsonl`."""


class Tag(Command):
    """Ranks labels for images, and prints them or writes them to files."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add images, labels, model, output and speed."""
        parser.add_argument(
            "images",
            nargs="*",
            metavar="IMAGE",
            help="images, folders of images, or quoted patterns such as 'a/**/*.jpg'",
        )
        parser.add_argument(
            "--images-file",
            metavar="FILE",
            help="paths of images: text with one per line, CSV or TSV with a column path, JSON or YAML; - for "
            "standard input",
        )
        parser.add_argument(
            "--allow-urls", action="store_true", help="download images that are given as http:// or https:// addresses"
        )
        add_label_options(parser)
        add_model_options(parser, device=True, precision=True)
        add_scoring_option(parser)
        parser.add_argument("--top-k", type=at_least(1), default=5, metavar="K", help="labels per image (default: 5)")
        parser.add_argument(
            "--threshold",
            type=_threshold,
            metavar="S",
            help="minimum score, for this list of labels only; the model's own: auto, or calibrated for probabilities",
        )
        parser.add_argument(
            "--exclusive",
            type=several_names,
            action="append",
            default=[],
            metavar="A,B",
            help="keep only the best of these labels, or of all below one of --vocabulary",
        )
        parser.add_argument(
            "--floor",
            type=several_names,
            default=[],
            metavar="A,B",
            help="names such as 'photo,image' that labels must beat",
        )
        parser.add_argument(
            "--probabilities",
            action="store_true",
            help="calibrated probabilities instead of scores; for models that were validated on labelled images",
        )
        parser.add_argument(
            "--out",
            type=Path,
            metavar="FILE",
            help="write tags.jsonl, tags.csv or tags.parquet; the same command resumes an interrupted run",
        )
        parser.add_argument("--overwrite", action="store_true", help="overwrite --out and start over")
        parser.add_argument(
            "--out-format",
            choices=("xmp",),
            help="xmp: add the labels to the keywords of an XMP sidecar beside each image, which is not touched",
        )
        parser.add_argument(
            "--xmp-name",
            choices=XMP_NAMES,
            metavar="NAME",
            help="photo.jpg.xmp (the default; digiKam, darktable) or photo.xmp (Lightroom, for raw files)",
        )
        parser.add_argument(
            "--format",
            choices=FORMATS,
            metavar="FORM",
            help="what is printed: table, tsv (lines of image, label and score) or jsonl (default: table on a "
            "terminal, else tsv)",
        )
        parser.add_argument(
            "--batch-size", type=at_least(1), metavar="B", help="images per batch (default: 32, on cuda 256)"
        )
        parser.add_argument(
            "--num-workers",
            type=at_least(0),
            metavar="N",
            help="threads that read images while the model runs (default: one per core, at most 8; 16 beside cuda)",
        )

    def run(self, args: argparse.Namespace) -> None:
        """Check labels, images and output, then load the model and tag."""
        if not args.images and args.images_file is None:
            raise UserError("the following arguments are required: IMAGE or --images-file; see 'ovml tag --help'")
        check_needs_no_fit(args.scoring)
        labels = chosen_labels(args)
        if labels is not None:
            parents = {} if args.vocabulary is None else packaged_parents(args.vocabulary)
            group_columns(_groups(args.exclusive, parents), labels.names)
            if args.floor:
                labels.extended(args.floor, "floor")
        skipped: Counter[str] = Counter()
        images: Iterator[Path | str] = find_images(args.images, skipped, args.allow_urls)
        if args.images_file is not None:
            images = chain(images, read_paths(args.images_file, notice))
        if args.out_format is not None and args.out is not None:
            raise UserError(f"--out {args.out}: --out-format {args.out_format} writes beside the images; leave one out")
        if args.xmp_name is not None and args.out_format is None:
            raise UserError("--xmp-name: names the sidecars of --out-format xmp; give both or none")
        if args.out is not None:
            check_output(args.out, SUFFIXES, args.overwrite)
        if args.format is not None and (args.out is not None or args.out_format is not None):
            raise UserError("--format: is of what is printed; --out or --out-format says what is written")

        is_file = args.model.lower().endswith(tuple(EXPORTED.values()))
        if is_file and args.prompt is not None:
            raise UserError(f"--prompt: {args.model} has no text tower; ovml embed-labels embeds labels for it")
        if is_file and args.scoring is not None:
            raise UserError(f"--scoring: {args.model} scores as the model that it was made of; leave it out")
        with starting():
            from ovml.cli.models import EVERYDAY, exported_and_labels, model_and_labels
            from ovml.cli.tagging import print_tags, write_tags, write_xmp
            from ovml.inference.tagger import Tagger

            model, scored = exported_and_labels(args, labels) if is_file else model_and_labels(args, labels)
        options = "top_k", "batch_size", "threshold", "floor", "num_workers", "prompt", "probabilities", "allow_urls"
        packaged = args.vocabulary if labels is not None or scored is None else EVERYDAY
        parents = {} if packaged is None else packaged_parents(packaged)
        chosen = {name: getattr(args, name) for name in options}
        tagger = Tagger(model, scored, **chosen, exclusive=_groups(args.exclusive, parents))
        if args.out_format is not None:
            write_xmp(tagger, images, parents, args.xmp_name or XMP_NAMES[0], _total(args))
        elif args.out is None:
            print_tags(tagger, images, args.format or ("table" if sys.stdout.isatty() else "tsv"))
        else:
            write_tags(tagger, images, args.out, args.overwrite, _total(args))
        if skipped:
            notice(f"passed over in folders: {', '.join(f'{n:,} {kind}' for kind, n in skipped.most_common())}")


def _groups(groups: Sequence[Sequence[str]], parents: Mapping[str, str]) -> list[Sequence[str]]:
    """Groups of labels, a single label replaced by those below it."""
    found = []
    for group in groups:
        below = labels_below(group[0], parents) if len(group) == 1 else group
        if not below:
            raise UserError(
                f"exclusive: no label is below {group[0]!r}; give two labels or more, or one of --vocabulary everyday "
                "that has others below it, such as weather"
            )
        found.append(below)
    return found


def _threshold(text: str) -> float | Literal["calibrated", "auto"]:
    if text == "calibrated" or text == "auto":
        return text  # type: ignore[return-value]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number or 'calibrated' or 'auto', got {text[:LONGEST]!r}")
    return value


def _total(args: argparse.Namespace) -> int | None:
    """Number of images, if it is known without searching folders or reading a list, which may be a pipe."""
    known = args.images_file is None and all(Path(image).is_file() for image in args.images)
    return len(args.images) if known else None
