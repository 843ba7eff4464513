"""`ovml prepare`: check a data set on disk, count what is there, and read its annotations once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pkgutil import resolve_name

from ovml.cli.command import Command, spell_options

DATA_SETS = {
    "nuswide": "ovml.data:NUSWIDEDataModule",
    "openimages": "ovml.data:OpenImagesDataModule",
    "coco": "ovml.data:COCODataModule",
    "voc": "ovml.data:VOCDataModule",
    "multiscene": "ovml.data:MultiSceneDataModule",
    "mlrsnet": "ovml.data:MLRSNetDataModule",
    "pa100k": "ovml.data:PA100KDataModule",
    "rap": "ovml.data:RAPDataModule",
    "json": "ovml.data:JSONDataModule",
}
"""The data module of each data set that lies in a folder."""


class Prepare(Command):
    """Reads annotations, looks for images, verifies them, prints counts, lists what is missing."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the data set; its options are those of its data module, which imports torch."""
        parser.add_argument("data_set", choices=DATA_SETS, help="'ovml prepare DATA_SET --help' lists its options")

    def parse(self, parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the data set, then what follows it with the data module's own parser."""
        name = parser.parse_args(argv[:1]).data_set

        from ovml.cli.prepare_folder import option_parser

        data_module = resolve_name(DATA_SETS[name])
        options = option_parser(f"{parser.prog} {name}", data_module).parse_args(spell_options(argv[1:], "_"))
        return argparse.Namespace(data_module=data_module, **options.as_dict())

    def run(self, args: argparse.Namespace) -> None:
        """Check the data set."""
        from ovml.cli.prepare_folder import prepare_folder

        prepare_folder(**vars(args))
