"""What the commands that score labels share: their parser, the options of labels, model and device."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ovml.encoders.checkpoints import DEMO
from ovml.utils.console import notice
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary, check_names, read_vocabulary

if TYPE_CHECKING:
    from ovml.classifier import OVMultiLabelClassifier


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of printing the usage."""
        raise UserError(f"{message}; see '{self.prog} --help'")


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """Add `--labels`, `--labels-file`, `--model` and `--prompt`."""
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", metavar="A,B,...", help="label names, separated by commas")
    labels.add_argument(
        "--labels-file", type=Path, metavar="FILE", help="label names, one a line; or a CSV file with columns id,name"
    )
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model` and `--prompt`."""
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


def chosen_labels(args: argparse.Namespace) -> LabelVocabulary | None:
    """The labels that the options name; `None` for the model's own.

    Raises:
        UserError: They are no proper list.
    """
    if args.labels_file is not None:
        return read_vocabulary(args.labels_file)
    if args.labels is not None:
        return LabelVocabulary(check_names([n for n in args.labels.split(",") if n.strip()], where="--labels"))
    return None


def chosen_model(args: argparse.Namespace, names: LabelVocabulary | None) -> OVMultiLabelClassifier:
    """Load the model that the options name.

    Raises:
        UserError: It cannot be loaded, or there are neither labels nor a vocabulary of its own.
    """
    import transformers

    from ovml.inference.tagger import load_model

    transformers.utils.logging.disable_progress_bar()
    if args.model == DEMO:
        notice(f"{DEMO} knows drawn shapes only; for photographs give --model")
    model = load_model(args.model)
    if names is None and model.vocabulary is None:
        raise UserError("no labels: give --labels 'a,b' or --labels-file FILE; this model has no vocabulary of its own")
    return model


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda (default: cpu)")


def on_device(model: OVMultiLabelClassifier, device: str) -> OVMultiLabelClassifier:
    """Move a model to the device that `--device` names.

    Raises:
        UserError: It cannot be used here.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not usable here ({str(error).splitlines()[0]}); try cpu") from error


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number, and not less than `least`."""

    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from error
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}; got {value}")
        return value

    return whole_number
