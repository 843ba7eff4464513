"""`ovml fit|validate|test|predict`: their help on one page, and the checks that need no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from ovml.cli.command import Command, Parser, check_extra, checkpoint
from ovml.utils.errors import UserError
from ovml.utils.resources import config_path

OPTIONS = {
    "--config": ("FILE", "YAML of an experiment: a path, or one that ovml ships, such as demo.yaml"),
    "--ckpt_path": ("RUN", "run folder, a checkpoint in it, or 'last'"),
    "--data": ("CLASS", "data module, such as NUSWIDEDataModule"),
    "--data.root": ("DIR", "folder of the data set"),
    "--data.batch_size": ("B", "images per training batch and device"),
    "--data.eval_batch_size": ("B", "images per evaluation batch and device"),
    "--data.num_workers": ("N", "processes that read images"),
    "--model.clip": ("NAME", "CLIP or SigLIP checkpoint, such as openai/clip-vit-base-patch16"),
    "--model.head": ("CLASS", "such as LocalHead; its arguments follow, such as --model.head.top_k 16"),
    "--model.prompt": ("CLASS", "such as CoOpPrompt"),
    "--model.loss": ("CLASS", "such as ZLPRLoss"),
    "--model.distillation_weight": ("W", "weight of the distillation from the frozen CLIP"),
    "--model.stages": ("LIST", "such as '[VisionStage, PromptStage]'"),
    "--trainer.max_epochs": ("N", "maximum epochs of each stage"),
    "--trainer.devices": ("N", "number of devices"),
    "--trainer.precision": ("P", "such as bf16-mixed"),
    "--trainer.default_root_dir": ("DIR", "where run folders are made"),
    "--trainer.callbacks+": ("CLASS", "add a callback, such as LearnedEMA"),
    "--seed_everything": ("SEED", "seed of everything random (default: 0)"),
    "--plots": (None, "draw figures of each evaluation; needs pip install 'ovml[plots]'"),
}
"""The options that `--help` shows, with the name of the value; `--help-all` shows all."""
FIT_ONLY = (
    "--data.batch_size",
    "--model.loss",
    "--model.distillation_weight",
    "--trainer.max_epochs",
    "--trainer.callbacks+",
)
FIT_EXAMPLES = (
    "ovml fit --config demo.yaml",
    "ovml fit --config nuswide.yaml --data.root DIR --trainer.devices 2 --trainer.precision bf16-mixed",
    "ovml fit --config demo.yaml --model.head LocalHead --model.head.top_k 3 --ckpt_path last",
)
EXAMPLES = (
    "ovml {name} --ckpt_path runs/demo/version_0",
    "ovml {name} --ckpt_path runs/demo/version_0/vision/last.ckpt --data.eval_batch_size 100",
    "ovml {name} --config nuswide.yaml --data.root DIR",
)


class Training(Command):
    """One of LightningCLI's commands; only `ovml.cli.lightning` knows all of its options."""

    separator = "_"

    @property
    def examples(self) -> list[str]:
        """Commands to start from."""
        return [text.format(name=self.name) for text in (FIT_EXAMPLES if self.name == "fit" else EXAMPLES)]

    def parser(self) -> argparse.ArgumentParser:
        """The parser of the options that are shown or checked here."""
        parser = Parser(
            prog=f"ovml {self.name}",
            usage=f"ovml {self.name} [--config FILE] [--OPTION VALUE ...]",
            description=f"{self.help[0].upper()}{self.help[1:]}.",
            epilog="\n  ".join(["examples:", *self.examples, f"ovml {self.name} --help-all    (all options)"]),
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=34),
            allow_abbrev=False,
        )
        self.add_arguments(parser)
        return parser

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of `OPTIONS`; the value of each stays for LightningCLI to check."""
        for option, (metavar, help) in OPTIONS.items():
            if option == "--config":
                parser.add_argument("-c", option, metavar=metavar, action="append", help=help)
            elif metavar is None:
                parser.add_argument(option, action="store_true", help=help)
            elif self.name == "fit" or option not in FIT_ONLY:
                parser.add_argument(
                    option, metavar=metavar, help=help, type=checkpoint if option == "--model.clip" else str
                )
        parser.add_argument("--print_config", nargs="?", metavar="FLAGS", help="print the whole configuration and exit")
        parser.add_argument("--help_all", action="store_true", help=argparse.SUPPRESS)

    def parse(self, parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the options that are known here and keep all arguments as `argv`."""
        args, _ = parser.parse_known_args(argv)
        args.argv = list(argv)
        return args

    def run(self, args: argparse.Namespace) -> None:
        """Check configurations, run folder and extras, then import Lightning and run."""
        argv = ["--help"] if args.help_all else self.with_configs(args)
        if args.plots:
            check_extra("plots", "matplotlib")

        from ovml.cli.lightning import run_lightning

        run_lightning([self.name, *argv])

    def with_configs(self, args: argparse.Namespace) -> list[str]:
        """The arguments with paths of configurations; if only a run is given, with the configuration in its folder.

        Raises:
            UserError: A configuration or the run does not exist, or a configuration is not YAML.
        """
        for name in args.config or ():
            _check_yaml(config_path(name))
        run = None if args.ckpt_path in (None, "null", "last") else run_folder(args.ckpt_path)
        if args.config:
            return _find_configs(args.argv)
        if not any(arg.startswith(("--data", "--ckpt_path", "--print_")) or ".help" in arg for arg in args.argv):
            raise UserError(
                f"no data set: give --config FILE, such as demo.yaml, or --data CLASS; see 'ovml {self.name} --help'"
            )
        if args.ckpt_path == "last":
            raise UserError("--ckpt_path last: give --config too, or the run's folder instead of 'last'")
        return args.argv if run is None else ["--config", str(run / "config.yaml"), *args.argv]


def run_folder(path: str) -> Path:
    """The folder of a run, given it or a checkpoint inside it.

    Raises:
        UserError: There is no such run.
    """
    found = Path(path)
    for folder in (found, found.parent, found.parent.parent):
        if found.exists() and (folder / "config.yaml").is_file():
            return folder
    raise UserError(
        f"--ckpt_path {path}: not a run; give 'last', a run's folder (with its config.yaml) or a checkpoint inside one"
    )


def _check_yaml(path: str) -> None:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not a YAML file ({' '.join(str(error).split())}); fix it") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: no configuration; it holds keys such as model and data")


def _find_configs(argv: Sequence[str]) -> list[str]:
    out = []
    for position, arg in enumerate(argv):
        if position and argv[position - 1] in ("--config", "-c"):
            arg = config_path(arg)
        elif arg.startswith("--config="):
            arg = f"--config={config_path(arg.removeprefix('--config='))}"
        out.append(arg)
    return out
