"""`ovml prepare`: check a data set on disk, count what is there, and read its annotations once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ovml.cli.command import Command

DATA_SETS = {
    "nuswide": "ovml.data.NUSWIDEDataModule",
    "openimages": "ovml.data.OpenImagesDataModule",
    "json": "ovml.data.JSONDataModule",
}
"""The data module of each data set that lies in a folder."""


class Prepare(Command):
    """Reads annotations, looks for images, verifies them, prints counts, lists what is missing."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the data set; its options are those of its data module, which imports torch."""
        parser.add_argument("data_set", choices=DATA_SETS, help="'ovml prepare DATA_SET --help' lists its options")

    def parse(self, parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the data set and keep what follows it as `options`."""
        args = parser.parse_args(argv[:1])
        args.options = argv[1:]
        return args

    def run(self, args: argparse.Namespace) -> None:
        """Hand the options to the data module's own parser."""
        from ovml.cli.prepare_folder import prepare_folder

        prepare_folder(args.data_set, DATA_SETS[args.data_set], args.options)
