"""`ovml labels`: the label vocabularies that ovml ships."""

from __future__ import annotations

import argparse

from ovml.cli.command import Command
from ovml.utils.console import show_line
from ovml.utils.errors import UserError
from ovml.utils.resources import VOCABULARIES
from ovml.vocabulary import packaged_parents, packaged_vocabulary


class Labels(Command):
    """Lists vocabularies, or prints the names of one, a line each."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the vocabulary and the form."""
        parser.add_argument(
            "name",
            nargs="?",
            choices=VOCABULARIES,
            metavar="NAME",
            help=f"print the names of one of {', '.join(VOCABULARIES)} (default: list these)",
        )
        parser.add_argument("--tree", action="store_true", help="indent names below their parents")

    def run(self, args: argparse.Namespace) -> None:
        """Print lines for people and for other programs alike."""
        if args.name is None:
            if args.tree:
                raise UserError("--tree: of which vocabulary? Give its name, such as ovml labels everyday --tree")
            for name, text in VOCABULARIES.items():
                show_line(f"{name:12}{len(packaged_vocabulary(name)):>6}  {text}")
            return
        names = packaged_vocabulary(args.name).names
        parents = packaged_parents(args.name) if args.tree else {}
        for name in names:  # a parent stands before its children
            show_line("  " * _depth(name, parents) + name)


def _depth(name: str, parents: dict[str, str]) -> int:
    return 1 + _depth(parents[name], parents) if name in parents else 0
