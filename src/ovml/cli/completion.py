"""`ovml completion`: a script that lets a shell complete commands and options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NoReturn

from ovml.cli.main import COMMANDS
from ovml.cli.options import Parser
from ovml.utils.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")
INSTALL = """Put it where the shell finds it:

  ovml completion bash > ~/.local/share/bash-completion/completions/ovml
  ovml completion zsh > "${fpath[1]}/_ovml"
  ovml completion tcsh >> ~/.tcshrc"""


def completion(argv: list[str]) -> None:
    """Print the script; it is made of the commands' own parsers, and asks nothing when it completes."""
    parser = Parser(
        prog="ovml completion",
        description="Print a script that completes commands and options.",
        epilog=INSTALL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    args = parser.parse_args(argv[1:])
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion: needs the package shtab; pip install 'ovml[completion]'") from error
    print(shtab.complete(whole_parser(), shell=args.shell))


def whole_parser() -> argparse.ArgumentParser:
    """All commands as the sub-parsers of one parser; it knows their options, and parses nothing."""
    whole = argparse.ArgumentParser(prog="ovml")
    whole.add_argument("--version", action="store_true", help="show the version")
    whole.add_argument("--quiet", action="store_true", help="show results and errors alone")
    commands = whole.add_subparsers()
    lightning = _lightning_parsers()
    for name, (place, text) in COMMANDS.items():
        options = commands.add_parser(name, help=text)
        module = import_module(place.partition(":")[0])
        if name in lightning:
            _copy_all(lightning[name], options)
        elif hasattr(module, "make_parser"):
            _copy_all(module.make_parser(), options)
    return whole


def _copy_all(own: argparse.ArgumentParser, options: argparse.ArgumentParser) -> None:
    known = options._option_string_actions
    for action in own._actions:
        if not set(action.option_strings) & set(known):
            _copy(action, options)
        if isinstance(action.choices, Mapping):  # the parsers of a data set each
            for parser in action.choices.values():
                _copy_all(parser, options)


def _copy(action: argparse.Action, parser: argparse.ArgumentParser) -> None:
    """Add what is to be completed of an option; its type and default are none of a shell's business."""
    import shtab

    if isinstance(action, argparse._HelpAction):
        return
    text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help).partition("(")[0].partition(";")[0]
    options: dict[str, Any] = {"help": " ".join(text.split()).replace("%", "%%")}
    if action.nargs == 0:
        options["action"] = "store_true"
    elif action.choices:
        options["choices"] = list(action.choices)
    added = parser.add_argument(*(action.option_strings or [action.dest]), **options)
    if action.metavar in FILES or action.dest in FILES:
        added.complete = shtab.FILE  # type: ignore[attr-defined]


FILES = ("FILE", "IMAGE", "NAMES", "DIR", "config", "ckpt_path")
"""Names of values for which the shell offers files."""


def _lightning_parsers() -> Mapping[str, argparse.ArgumentParser]:
    """The parsers of fit, validate, test and predict, of a command line that never begins to run."""
    from ovml.cli.lightning import OVMLCLI

    class Parsers(OVMLCLI):
        def parse_arguments(self, *_: Any, **__: Any) -> NoReturn:
            raise _MadeError(self._subcommand_parsers)

    try:
        Parsers([])
    except _MadeError as made:
        return made.parsers
    raise AssertionError("a command line ran without its arguments")


class _MadeError(Exception):
    def __init__(self, parsers: Mapping[str, argparse.ArgumentParser]) -> None:
        self.parsers = parsers
