"""`ovml import-mkt`: checkpoints of the published MKT code become a saved model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovml.cli.command import Command, at_least, check_file
from ovml.utils.console import show
from ovml.utils.errors import UserError
from ovml.utils.resources import DEFAULT
from ovml.vocabulary import LabelVocabulary, read_names, read_vocabulary


class ImportMKT(Command):
    """Reads the checkpoints of both stages and saves a model."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the checkpoints, the output, labels, and what the checkpoints lack."""
        parser.add_argument("--stage1", type=Path, required=True, metavar="FILE", help="first stage: the vision tower")
        parser.add_argument("--stage2", type=Path, required=True, metavar="FILE", help="second stage: the text tower")
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the saved model")
        parser.add_argument(
            "--labels-file",
            type=Path,
            metavar="FILE",
            help="the vocabulary, one name per line, such as Concepts925.txt",
        )
        parser.add_argument(
            "--unseen-file", type=Path, metavar="FILE", help="labels unseen in training, such as Concepts81.txt"
        )
        parser.add_argument(
            "--clip",
            metavar="NAME",
            help=f"CLIP that training started from, such as {DEFAULT}: its token table then embeds the label names, as "
            "in the published evaluation",
        )
        parser.add_argument(
            "--tokenizer",
            default=DEFAULT,
            metavar="NAME",
            help=f"folder or name of CLIP's tokenizer (default: {DEFAULT})",
        )
        parser.add_argument(
            "--top-k",
            type=at_least(1),
            metavar="K",
            help="patches averaged per label (default: 16 of 196, as in training)",
        )

    def run(self, args: argparse.Namespace) -> None:
        """Read the files, save the model."""
        labels = _labels(args.labels_file, args.unseen_file)
        check_file("--stage1", args.stage1)
        check_file("--stage2", args.stage2)

        import transformers

        from ovml.saving import save_model
        from ovml.saving.mkt import import_mkt

        transformers.utils.logging.disable_progress_bar()
        model = import_mkt(args.stage1, args.stage2, args.clip, args.tokenizer, labels, args.top_k)
        save_model(model, args.out)
        if args.clip is None:
            show(
                "ovml: the trained token table embeds the label names, as the published inference.py does; "
                f"--clip {DEFAULT} embeds them as its evaluation does"
            )
        own = "" if labels is not None else " --labels A,B"
        show(f"saved: {args.out}\ntag: ovml tag IMAGE{own} --model {args.out}")


def _labels(seen: Path | None, unseen: Path | None) -> LabelVocabulary | None:
    if unseen is None:
        return None if seen is None else read_vocabulary(seen)
    if seen is None:
        raise UserError("--unseen-file needs --labels-file, the labels seen in training")
    return LabelVocabulary(read_names(seen), read_names(unseen))
