"""`ovml adapt`: images without labels in, a model that is fitted on them out."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ovml.cli.command import (
    FITTED,
    SCORINGS,
    Command,
    add_label_options,
    add_model_options,
    at_least,
    check_file,
    chosen_labels,
    scoring,
)
from ovml.cli.parsing import LONGEST
from ovml.utils.console import notice, show
from ovml.utils.errors import UserError, beginning
from ovml.utils.files import MOST_BYTES, check_folder
from ovml.utils.find_images import find_images
from ovml.utils.lists import ListKind, read_list
from ovml.utils.progress import track
from ovml.vocabulary import LabelVocabulary, label_key

TEXTS = ListKind(
    noun="text",
    columns=("caption", "captions", "prompt", "prompts", "text", "sentence", "title", "description"),
    ids=(),
    clean=str.strip,
    most_bytes=MOST_BYTES,
)
"""Captions and prompts in files."""


class Adapt(Command):
    """Fits what a scoring fits on images without labels, and a threshold; saves a model."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add images, labels, model, what is fitted, and output."""
        parser.add_argument(
            "images",
            nargs="+",
            metavar="FOLDER",
            help="folders of images like those that will be tagged, a hundred or more; or quoted patterns",
        )
        add_label_options(parser)
        add_model_options(parser, device=True)
        parser.add_argument(
            "--scoring",
            type=scoring,
            metavar="NAME",
            help=f"how a plain CLIP scores: {' or '.join(FITTED)}, which are fitted; or, for a threshold alone, "
            f"{', '.join(name for name in SCORINGS if name not in FITTED)}, or a head such as my_package.MyHead "
            f"(default: {FITTED[0]})",
        )
        parser.add_argument(
            "--expected",
            type=_number,
            metavar="N",
            help="labels that an image has on average, such as 2.5, for the threshold of 'ovml tag --threshold auto'",
        )
        texts = parser.add_mutually_exclusive_group()
        texts.add_argument(
            "--compound-prompts",
            type=Path,
            metavar="FILE",
            help="for sparc: prompts that name several labels, such as 'a dog next to a bicycle', one per line",
        )
        texts.add_argument(
            "--captions",
            type=Path,
            metavar="FILE",
            help="for sparc: captions of any images, one per line; labels that they name together become such prompts",
        )
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the model that is saved")
        parser.add_argument("--overwrite", action="store_true", help="replace a model in --out")
        parser.add_argument(
            "--batch-size", type=at_least(1), default=32, metavar="B", help="images per batch (default: 32)"
        )
        parser.add_argument(
            "--num-workers",
            type=at_least(0),
            metavar="N",
            help="threads that read images while the model runs (default: one per core, at most eight)",
        )

    def run(self, args: argparse.Namespace) -> None:
        """Check all input, load the model, fit it, save it."""
        if args.scoring == "tagclip":
            raise UserError("--scoring tagclip: a second look is neither fitted nor saved; take piaa or sparc")
        if args.scoring in SCORINGS and args.scoring not in FITTED and args.expected is None:
            raise UserError(
                f"--scoring {args.scoring}: has nothing to fit; give --expected N for a threshold, or --scoring "
                f"{' or '.join(FITTED)}"
            )
        text_file = args.compound_prompts or args.captions
        if text_file is not None and args.scoring not in (None, "sparc"):
            raise UserError(f"--scoring {args.scoring}: takes no prompts; leave out {text_file}, or take sparc")
        _check_out(args.out, args.overwrite)
        check_file("--compound-prompts", args.compound_prompts)
        check_file("--captions", args.captions)
        texts = [] if text_file is None else list({label_key(t): t for t in read_list(text_file, TEXTS).names}.values())
        labels = chosen_labels(args)
        skipped: Counter[str] = Counter()
        images = find_images(args.images, skipped)

        from ovml.cli.models import model_and_labels
        from ovml.heads.pool import fitted_part
        from ovml.heads.scoring import piaa, sparc
        from ovml.inference.adapt import adapt
        from ovml.prompts import TemplatePrompt
        from ovml.saving import save_model

        model, labels = model_and_labels(args, labels)
        vocabulary = model.vocabulary_of(labels)
        if model.scoring is None and text_file is not None:
            raise UserError(f"{text_file}: is for a plain CLIP; {args.model} has a head of its own")
        if text_file is not None:
            prompts = texts if args.captions is None else _prompts_of(texts, vocabulary, args.captions)
            model = model.scored_by(sparc(prompts))
        elif model.scoring is not None and args.scoring is None:
            model = model.scored_by(piaa())
        if args.scoring is None and model.scoring is not None:
            notice(f"scoring {'piaa' if text_file is None else 'sparc'}: {model.scoring.cost}")
        if args.prompt is not None:
            model.prompt = TemplatePrompt(args.prompt).bind(model.prompt.text_encoder).eval()
            model.calibration = None  # of another prompt
        pool = ", ".join(Path(image).resolve().name for image in args.images)
        options = {"expected": args.expected, "batch_size": args.batch_size, "num_workers": args.num_workers}
        adapted = adapt(model, track(images, "images", None), vocabulary, pool=pool, **options)
        if skipped:
            notice(f"passed over in folders: {', '.join(f'{n:,} {kind}' for kind, n in skipped.most_common())}")
        save_model(model, args.out, metrics={})

        show(f"fitted for {len(vocabulary):,} labels on {adapted.summary()}")
        part = fitted_part(model.head)
        if part is not None and part.not_found:
            names = [vocabulary.names[i] for i in part.not_found]
            show(f"not found in these images, so that the name alone counts: {_some(names)}")
        if adapted.threshold is not None:
            show(f"threshold {adapted.threshold.score:.4g}: {args.expected:g} labels of an image reach it, on average")
        auto = "" if adapted.threshold is None else " --threshold auto"
        show(f"saved: {args.out}\ntag: ovml tag IMAGE --model {args.out}{auto}")


def _check_out(out: Path, overwrite: bool) -> None:
    """Check that the model can be saved."""
    check_folder(out, "--out")
    if out.is_dir() and any(out.iterdir()):
        if not (out / "config.json").is_file():
            raise UserError(f"--out {out}: holds other files; give a new or empty folder")
        if not overwrite:
            raise UserError(f"--out {out}: exists already; give another name, or use --overwrite to replace it")


def _prompts_of(captions: Sequence[str], vocabulary: LabelVocabulary, file: Path) -> list[str]:
    from ovml.inference.compound_prompts import compound_prompts

    prompts = compound_prompts(captions, vocabulary.texts)
    if not prompts:
        raise UserError(
            f"--captions {file}: no two labels are named together in more than one of {len(captions):,} captions; give "
            "more of them, or --compound-prompts"
        )
    notice(f"{len(prompts):,} compound prompts of {len(captions):,} captions: {_some(prompts)}")
    return prompts


def _some(names: Sequence[str]) -> str:
    """The first names of a list."""
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(map(beginning, names[:5])) + more


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text[:LONGEST]!r}")
    return value
