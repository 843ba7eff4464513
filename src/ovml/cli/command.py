"""The base class of the commands, and the options that several of them share. Nothing here imports torch."""

from __future__ import annotations

import argparse
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from ovml.cli.parsing import LONGEST, Parser, nearest
from ovml.utils.console import notice
from ovml.utils.errors import UserError, one_line
from ovml.utils.hub import check_hub_name
from ovml.utils.lists import read_list
from ovml.utils.resources import DEMO, VOCABULARIES
from ovml.vocabulary import LabelVocabulary, check_names, check_template, packaged_vocabulary, vocabulary_of

PRECISIONS = ("auto", "float32", "bf16", "fp16")
"""As in `ovml.utils.devices`, which imports torch."""


class Command(ABC):
    """A command of the command line.

    Subclass it in a module of its own that imports neither torch nor Lightning at the top, write `add_arguments` and
    `run`, and list it in `ovml.cli.main.COMMANDS`.

    Args:
        name: What is typed after `ovml`.
        help: One line, without a full stop.

    Example:
        >>> class Greet(Command):
        ...     def add_arguments(self, parser):
        ...         parser.add_argument("--some-name", default="you")
        ...
        ...     def run(self, args):
        ...         print(f"Hello, {args.some_name}!")
        >>> Greet("greet", "say hello")(["--some_name", "reader"])
        Hello, reader!
    """

    separator = "-"
    """Between the words of an option's name; the other one, `-` or `_`, is accepted too."""

    def __init__(self, name: str, help: str) -> None:
        self.name = name
        self.help = help

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options and positional arguments."""

    @abstractmethod
    def run(self, args: argparse.Namespace) -> None:
        """Check what can be checked without torch, then import what is needed and do the work.

        Raises:
            UserError: The input is at fault.
        """

    def parser(self) -> argparse.ArgumentParser:
        """The parser with all options."""
        parser = Parser(prog=f"ovml {self.name}", description=f"{self.help[0].upper()}{self.help[1:]}.")
        self.add_arguments(parser)
        return parser

    def parse(self, parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
        """Parse arguments whose options are spelled with `separator`."""
        return parser.parse_args(argv)

    def __call__(self, argv: Sequence[str]) -> None:
        """Parse the arguments and run.

        Raises:
            UserError: The input is at fault; the message names options, not arguments of functions.
        """
        parser = self.parser()
        args = self.parse(parser, spell_options(argv, self.separator))
        try:
            self.run(args)
        except UserError as error:
            positional = {action.dest for action in parser._actions if not action.option_strings}
            names = vars(args).keys() - positional
            flags = {name: f"--{name.replace('_', self.separator)}" for name in names}
            raise UserError(with_flags(one_line(error), flags)) from error


def spell_options(argv: Sequence[str], separator: str) -> list[str]:
    """Spell option names with `-` or with `_` between their words; values stay as they are.

    >>> spell_options(["--labels_file", "my_labels.txt", "--top_k=3", "--", "--a_b"], "-")
    ['--labels-file', 'my_labels.txt', '--top-k=3', '--', '--a_b']
    >>> spell_options(["--trainer.max-epochs", "3", "--ckpt-path=a-b"], "_")
    ['--trainer.max_epochs', '3', '--ckpt_path=a-b']
    """
    end = argv.index("--") if "--" in argv else len(argv)

    def spell(name: re.Match[str]) -> str:
        return "--" + re.sub("[-_]", separator, name[1])

    return [*(re.sub("^--([^=]+)", spell, arg) for arg in argv[:end]), *argv[end:]]


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """Write arguments as the options that set them: at the start of a message, and wherever it has `name=value`.

    Args:
        message: Of a `UserError`.
        flags: The option of each argument.

    >>> flags = {"top_k": "--top-k", "overwrite": "--overwrite"}
    >>> with_flags("top_k must be at least 1; got 0", flags)
    '--top-k must be at least 1; got 0'
    >>> with_flags("a.csv: exists already; give another name, or use overwrite=True", flags)
    'a.csv: exists already; give another name, or use --overwrite'
    """

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in flags:
            return found[0]
        return flags[name] if value == "True" else f"{flags[name]} {value}"

    message = re.sub(r"^[\w.]+(?=[ :])", lambda found: flags.get(found[0], found[0]), message)
    return re.sub(r"(?<![\w.-])([\w.]+)=([^\s,;)]+)", option, message)


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """Add `--labels`, `--labels-file` and `--vocabulary`; see `chosen_labels`."""
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", metavar="A,B,...", help="label names, separated by commas")
    labels.add_argument(
        "--labels-file",
        type=Path,
        metavar="FILE",
        help="label names: text with one per line, CSV or TSV with columns id,name, JSON or YAML",
    )
    labels.add_argument(
        "--vocabulary",
        choices=VOCABULARIES,
        metavar="NAME",
        help=f"labels that ovml ships: {', '.join(VOCABULARIES)}; 'ovml labels NAME' prints them",
    )


def chosen_labels(args: argparse.Namespace) -> LabelVocabulary | None:
    """The labels that the options name, with a notice of what a file holds; `None` for the model's own.

    Raises:
        UserError: They cannot be read, or are not a proper list.
    """
    if args.vocabulary is not None:
        return packaged_vocabulary(args.vocabulary)
    if args.labels_file is not None:
        found = read_list(args.labels_file)
        labels = vocabulary_of(found, str(args.labels_file))
        notice(found.summary())
        return labels
    if args.labels is not None:
        return LabelVocabulary(check_names(comma_separated(args.labels), where="--labels"))
    return None


def comma_separated(text: str) -> list[str]:
    """Names that are separated by commas, in Unicode's normal form C; empty ones are left out."""
    return [name for name in unicodedata.normalize("NFC", text).split(",") if name.strip()]


def several_names(text: str) -> list[str]:
    """The type of an option that is one or more names, separated by commas."""
    if not (names := comma_separated(text)):
        raise argparse.ArgumentTypeError("expected names, separated by commas")
    return names


def add_model_options(parser: argparse.ArgumentParser, device: bool = False, precision: bool = False) -> None:
    """Add `--model` and `--prompt`.

    Args:
        parser: Gets the options.
        device: Add `--device`, for commands that run the model.
        precision: Add `--precision` and `--no-cache` too, for those that do not save it.
    """
    parser.add_argument(
        "--model",
        type=checkpoint,
        default=DEMO,
        help="run or checkpoint of ovml fit, saved model, or CLIP such as openai/clip-vit-base-patch16 "
        f"(default: {DEMO}, which knows drawn shapes only)",
    )
    parser.add_argument(
        "--prompt",
        type=_template,
        action="append",
        metavar="TEMPLATE",
        help="such as 'a photo of a {}', instead of the model's own prompt; several are averaged",
    )
    if device:
        parser.add_argument(
            "--device", default="auto", metavar="D", help="such as cuda:1 (default: auto, the first of cuda, mps, cpu)"
        )
    if precision:
        parser.add_argument(
            "--precision",
            choices=PRECISIONS,
            default="auto",
            metavar="P",
            help="float32, bf16, fp16 or auto: bf16 or fp16 on cuda, else float32 (default: auto)",
        )
        parser.add_argument(
            "--no-cache", action="store_true", help="embed the labels anew, without ~/.cache/ovml (or OVML_CACHE)"
        )


SCORINGS = ("cosine", "standardized", "surgery", "patches", "tagclip", "piaa", "sparc")
"""Names of scorings, as in `ovml.heads.scoring`, which imports torch."""
FITTED = ("piaa", "sparc")
"""Those that `ovml adapt` fits before they score."""


def add_scoring_option(parser: argparse.ArgumentParser) -> None:
    """Add `--scoring`, for commands that score with what needs no fit; see `check_needs_no_fit`."""
    names = ", ".join(name for name in SCORINGS[1:] if name not in FITTED)
    parser.add_argument(
        "--scoring", type=scoring, metavar="NAME", help=f"how a plain CLIP scores: {SCORINGS[0]} (default), {names}"
    )


def scoring(name: str) -> str:
    """The type of an option that names a scoring, or the import path of a head."""
    if name not in SCORINGS and "." not in name:
        raise argparse.ArgumentTypeError(f"no scoring {name[:LONGEST]!r}{nearest(name, SCORINGS)}")
    return name


def check_needs_no_fit(scoring: str | None) -> None:
    """Check that a scoring scores as it is.

    Raises:
        UserError: It has to be fitted first.
    """
    if scoring in FITTED:
        raise UserError(
            f"--scoring {scoring}: is fitted on images without labels first: ovml adapt FOLDER --scoring {scoring} "
            "--out MODEL, then --model MODEL without --scoring"
        )


def checkpoint(name: str) -> str:
    """The type of an option that names a checkpoint: what can only be a path must exist; see `check_hub_name`."""
    is_path = Path(name).is_absolute() or name.startswith(".") or name.endswith(".ckpt")
    if is_path and not os.path.exists(name):
        raise argparse.ArgumentTypeError(f"{name}: no such checkpoint here; check the path")
    try:
        check_hub_name(name)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def _template(text: str) -> str:
    try:
        return check_template(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a whole number from `least` to `most`; without it, to the largest of 32 bits."""
    largest = 2**31 - 1 if most is None else most

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text[:LONGEST]!r}") from error
        if not least <= number <= largest:
            limit = f"at least {least}" if number < least and most is None else f"from {least} to {largest}"
            raise argparse.ArgumentTypeError(f"must be {limit}; got {text[:LONGEST]}")
        return number

    return whole_number


def check_file(option: str, path: Path | None) -> None:
    """Check that an option's file exists, if the option is given.

    Raises:
        UserError: It does not exist.
    """
    if path is not None and not path.is_file():
        raise UserError(f"{option} {path}: no such file; check the path")


def check_extra(extra: str, *packages: str) -> None:
    """Check that the packages of one of ovml's extras are installed.

    Raises:
        UserError: One is not.
    """
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed; pip install 'ovml[{extra}]'")
