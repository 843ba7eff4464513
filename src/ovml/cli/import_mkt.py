"""`ovml import-mkt`: checkpoints of the published MKT code become a saved model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovml.cli.options import Parser
from ovml.encoders.checkpoints import DEFAULT
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary, read_names, read_vocabulary


def import_mkt(argv: list[str]) -> None:
    """Read the two files, and save the model."""
    args = make_parser().parse_args(argv[1:])
    labels = _labels(args.labels_file, args.unseen_file)

    import transformers

    from ovml.saving.mkt import import_mkt as import_published

    transformers.utils.logging.disable_progress_bar()
    model = import_published(args.stage1, args.stage2, args.clip, args.tokenizer, labels, args.top_k)
    model.save_pretrained(args.out)
    if args.clip is None:
        print(
            "ovml: label names are read with the trained token table, as the published inference.py does; "
            f"--clip {DEFAULT} reads them as its evaluation does"
        )
    own = "" if labels is not None else " --labels A,B"
    print(f"saved: {args.out}\ntag: ovml tag IMAGE{own} --model {args.out}")


def _labels(seen: Path | None, unseen: Path | None) -> LabelVocabulary | None:
    if unseen is None:
        return None if seen is None else read_vocabulary(seen)
    if seen is None:
        raise UserError("--unseen-file needs --labels-file, the labels seen in training")
    return LabelVocabulary(read_names(seen), read_names(unseen))


def make_parser() -> argparse.ArgumentParser:
    """The options of `ovml import-mkt`."""
    parser = Parser(prog="ovml import-mkt", description="Turn checkpoints of the published MKT code into a model.")
    parser.add_argument("--stage1", type=Path, required=True, metavar="FILE", help="first stage: the vision tower")
    parser.add_argument("--stage2", type=Path, required=True, metavar="FILE", help="second stage: the text tower")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the saved model")
    parser.add_argument(
        "--labels-file", type=Path, metavar="FILE", help="the vocabulary, one name a line, such as Concepts925.txt"
    )
    parser.add_argument(
        "--unseen-file", type=Path, metavar="FILE", help="labels unseen in training, such as Concepts81.txt"
    )
    parser.add_argument(
        "--clip",
        metavar="NAME",
        help=f"CLIP that training began with, such as {DEFAULT}: label names are then read with its token table, as "
        "the published evaluation does",
    )
    parser.add_argument(
        "--tokenizer", default=DEFAULT, metavar="NAME", help=f"folder or name of CLIP's tokenizer (default: {DEFAULT})"
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="patches averaged per label (default: 16 of 196, as in training)"
    )
    return parser
