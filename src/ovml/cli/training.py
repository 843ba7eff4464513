"""`ovml fit|validate|test|predict`: their help on one page, and the checks that need no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ovml.cli.command import Command, check_extra, checkpoint
from ovml.cli.settings import check_config
from ovml.metrics.results import run_folder
from ovml.utils.errors import UserError
from ovml.utils.resources import config_path

OPTIONS = {
    "--config": ("FILE", "YAML of an experiment: a path, or one that ovml ships, such as demo.yaml"),
    "--ckpt_path": ("RUN", "run folder, a checkpoint in it, or 'last'"),
    "--data": ("CLASS", "data module, such as NUSWIDEDataModule"),
    "--data.root": ("DIR", "folder of the data set"),
    "--data.eval_batch_size": ("B", "images per evaluation batch and device"),
    "--data.num_workers": ("N", "processes that read images"),
    "--model.clip": ("NAME", "CLIP or SigLIP checkpoint, such as openai/clip-vit-base-patch16"),
    "--model.head": ("CLASS", "such as LocalHead; its arguments follow, such as --model.head.top_k 16"),
    "--model.prompt": ("CLASS", "such as CoOpPrompt"),
    "--model.stages": ("LIST", "such as '[VisionStage, PromptStage]'"),
    "--trainer.devices": ("N", "number of devices"),
    "--trainer.precision": ("P", "such as bf16-mixed"),
    "--trainer.default_root_dir": ("DIR", "where run folders are made"),
    "--seed_everything": ("SEED", "seed of everything random (default: 0)"),
    "--plots": (None, "draw figures of each evaluation; needs pip install 'ovml[plots]'"),
}
"""The options that `--help` shows, with the name of the value; `--help-all` shows all."""
FIT_OPTIONS = {
    "--data.batch_size": ("B", "images per training batch and device"),
    "--model.loss": ("CLASS", "such as ZLPRLoss"),
    "--model.distillation_weight": ("W", "weight of the distillation from the frozen CLIP"),
    "--trainer.max_epochs": ("N", "maximum epochs of each stage"),
    "--trainer.callbacks+": ("CLASS", "add a callback, such as LearnedEMA"),
}
"""More of them, of `ovml fit` only."""
FIT_EXAMPLES = (
    "ovml fit --config demo.yaml",
    "ovml fit --config nuswide.yaml --data.root DIR --trainer.devices 2 --trainer.precision bf16-mixed",
    "ovml fit --config demo.yaml --model.head LocalHead --model.head.top_k 3",
    "ovml fit --ckpt_path runs/demo/version_0",
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

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that are shown or checked here; the value of each stays for LightningCLI to check."""
        parser.usage = f"ovml {self.name} [--config FILE] [--OPTION VALUE ...]"
        parser.epilog = "\n  ".join(["examples:", *self.examples, f"ovml {self.name} --help-all    (all options)"])
        parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, max_help_position=34)
        parser.allow_abbrev = False
        more: dict[str, dict[str, Any]] = {"--config": {"action": "append"}, "--model.clip": {"type": checkpoint}}
        for option, (metavar, help) in (OPTIONS | (FIT_OPTIONS if self.name == "fit" else {})).items():
            names = ["-c", option] if option == "--config" else [option]
            kind = {"metavar": metavar, **more.get(option, {})} if metavar else {"action": "store_true"}
            parser.add_argument(*names, help=help, **kind)
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

        run_lightning([self.name, *argv], Path(argv[1]) if args.ckpt_path and not args.config else None)

    def with_configs(self, args: argparse.Namespace) -> list[str]:
        """The arguments with paths of configurations; if only a run is given, first the configuration in its folder.

        Raises:
            UserError: A configuration or the run does not exist, or a configuration is not YAML.
        """
        paths = {name: _checked_config(name) for name in args.config or ()}
        argv: list[str] = args.argv
        run = None if args.ckpt_path in (None, "null", "last") else run_folder(args.ckpt_path)
        if paths:
            paths |= {f"--config={name}": f"--config={path}" for name, path in paths.items()}
            return [paths.get(arg, arg) for arg in argv]
        if not any(arg.startswith(("--data", "--ckpt_path", "--print_")) or ".help" in arg for arg in argv):
            raise UserError(
                f"no data set: give --config FILE, such as demo.yaml, or --data CLASS; see 'ovml {self.name} --help'"
            )
        if args.ckpt_path == "last":
            raise UserError("--ckpt_path last: give --config too, or the run's folder instead of 'last'")
        if run is None:
            return argv
        if not (run / "config.yaml").is_file():
            raise UserError(f"--ckpt_path {run}: made in Python, it has no config.yaml; give --config too")
        return ["--config", _checked_config(str(run / "config.yaml")), *argv]


def _checked_config(name: str) -> str:
    path = config_path(name)
    check_config(path)
    return path
