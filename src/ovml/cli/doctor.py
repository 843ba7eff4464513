"""`ovml doctor`: what is installed here and whether it works, as plain text for a bug report."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module, metadata
from pathlib import Path
from pkgutil import resolve_name

from ovml.cli.command import Command
from ovml.utils.console import notice
from ovml.utils.errors import all_lines
from ovml.utils.resources import DEMO, RESOURCES

NEEDED = (
    *("torch", "lightning", "transformers", "torchmetrics", "datasets", "pillow", "numpy"),
    *("tokenizers", "safetensors", "pyarrow", "jsonargparse", "rich", "tensorboard"),
)
OPTIONAL = ("matplotlib", "h5py", "scipy", "torchvision", "ray", "gradio", "onnxruntime", "peft")


class Doctor(Command):
    """Prints versions, devices and caches, and checks the embedded model."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add `--all`."""
        parser.add_argument("--all", action="store_true", help="print all about the machine too, for a bug report")

    def run(self, args: argparse.Namespace) -> None:
        """Print a line `name: value` for each check; exit with 1 if one fails."""
        if broken := print_checks(checks(args.all)):
            sys.exit(f"ovml: broken: {', '.join(broken)}")
        notice("all works" + ("" if args.all else "; for a bug report: ovml doctor --all"))


def print_checks(found: Iterator[tuple[str, Callable[[], str]]]) -> list[str]:
    """Print each check's result, or its error.

    Returns:
        Names of the checks that failed.
    """
    broken = []
    for name, value in found:
        try:
            text = value()
        except Exception as error:  # a broken installation may raise any
            broken.append(name)
            text = f"broken ({type(error).__name__}: {all_lines(error)})"
        print(f"{name}: {without_home(text)}", flush=True)
    return broken


def without_home(text: str) -> str:
    """The text with `~` for the home folder, whose name often is a person's."""
    home = str(Path.home())
    return text.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else text


def checks(every: bool = False) -> Iterator[tuple[str, Callable[[], str]]]:
    """Names and functions of the checks: what one needs, or all about the machine too."""
    yield "ovml", lambda: f"{metadata.version('ovml')} in {RESOURCES.parent}"
    offline = ", ".join(f"{n}={os.environ.get(n, 'not set')}" for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing below asks the network
    yield "embedded model", _embedded_model
    yield "devices", _devices
    yield "bfloat16 on cpu", _bfloat16
    yield "packages", lambda: _versions(NEEDED, needed=True)
    yield "optional packages", lambda: _versions(OPTIONAL, needed=False)
    yield "hf offline", lambda: offline
    yield "hf cache", lambda: _folder("huggingface_hub.constants:HF_HUB_CACHE")
    yield "datasets cache", lambda: _folder("datasets.config:HF_DATASETS_CACHE")
    yield "free here", lambda: _free(Path.cwd())
    if every:
        yield "environment", _environment


def _versions(distributions: Sequence[str], needed: bool) -> str:
    """Versions on one line; those that are needed are imported too.

    Raises:
        RuntimeError: Some cannot be imported; it names them all.
    """
    found, broken = [], []
    for distribution in distributions:
        try:
            if needed:
                import_module("PIL" if distribution == "pillow" else distribution)
            installed = next(iter(metadata.distributions(name=distribution)), None)
            found.append(f"{distribution} {installed.version if installed else 'not installed'}")
        except Exception as error:  # a broken installation may raise any
            broken.append(f"{distribution}: {type(error).__name__}: {all_lines(error)}")
    if broken:
        raise RuntimeError("; ".join(broken))
    return ", ".join(found)


def _devices() -> str:
    import torch

    gpus = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    gpus += ["mps"] if torch.backends.mps.is_available() else []
    return ", ".join([*gpus, f"cpu ({torch.get_num_threads()} threads)"])


def _bfloat16() -> str:
    from ovml.training.precision import multiplies_bfloat16

    return "fast" if multiplies_bfloat16("cpu") else "slow, the processor lacks it: train with precision 32-true"


LABELS = ("blue star", "yellow ring", "green fish", "black cross", "purple square")


def _embedded_model() -> str:
    """Score a drawn scene of one object, for which the model is known to be right."""
    import transformers

    from ovml.data.synthetic.scenes import draw_scene
    from ovml.inference.tagger import Tagger
    from ovml.saving import load_model

    transformers.utils.logging.disable_progress_bar()
    ((_, ranked),) = Tagger(load_model(DEMO), LABELS, top_k=1).tag([draw_scene(0, "pretrain", 474).image])
    if ranked[0].label != LABELS[-1]:
        raise RuntimeError(f"finds {ranked[0].label!r} in a drawn {LABELS[-1]!r}")
    return f"{DEMO} finds the {LABELS[-1]} of a drawn scene among {len(LABELS)} labels"


def _folder(place: str) -> str:
    folder = Path(resolve_name(place))
    return f"{folder}, {_free(folder)} free"


def _free(folder: Path) -> str:
    """Free space on the disk of a folder, which may not exist yet."""
    folder = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB"


def _environment() -> str:
    """What torch's own bug reports hold, without the processor's flags and vulnerabilities."""
    from torch.utils.collect_env import get_pretty_env_info

    lines = get_pretty_env_info().splitlines()
    return "\n".join(["", *(line for line in lines if not line.startswith(("Flags:", "Vulnerability ")))])
