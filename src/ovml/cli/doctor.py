"""`ovml doctor`: what is installed here and whether it works, as plain text for a report of an issue."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import NoReturn

from ovml import __version__
from ovml.utils.errors import UserError

NEEDED = {
    "torch": "torch",
    "lightning": "lightning",
    "transformers": "transformers",
    "torchmetrics": "torchmetrics",
    "datasets": "datasets",
    "pillow": "PIL",
    "numpy": "numpy",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "pyarrow": "pyarrow",
    "jsonargparse": "jsonargparse",
    "rich": "rich",
    "tensorboard": "tensorboard",
}
"""Distributions and the modules that they give."""
OPTIONAL = ("matplotlib", "h5py", "torchvision", "ray", "gradio", "onnxruntime")
GIGA = 1024**3

Line = tuple[str, Callable[[], str]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see '{self.prog} --help'")


def doctor(argv: list[str]) -> None:
    """Print a line `name: value` for everything that matters; exit with 1 where something needed is broken."""
    _Parser(prog="ovml doctor", description="Show what is installed here and whether it works.").parse_args(argv[1:])
    if broken := print_lines(lines()):
        sys.exit(f"ovml: broken: {', '.join(broken)}")


def print_lines(found: Iterator[Line]) -> list[str]:
    """Print each line, whatever breaks in finding it out.

    Returns:
        Names of the lines that broke.
    """
    broken = []
    for name, value in found:
        try:
            text = value()
        except Exception as error:  # of a broken installation any may come
            broken.append(name)
            text = f"broken ({type(error).__name__}: {error})"
        print(f"{name}: {' '.join(without_home(text).split())}", flush=True)
    return broken


def without_home(text: str) -> str:
    """The text without the home folder's name, which often is a person's."""
    home = str(Path.home())
    return text.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else text


def lines() -> Iterator[Line]:
    """Everything that is said, in its order."""
    yield "ovml", lambda: f"{__version__} in {Path(__file__).parents[1]}"
    yield "python", lambda: f"{platform.python_version()} in {sys.prefix}"
    yield "platform", platform.platform
    yield "hf offline", _offline
    # From here on nothing asks the network, whatever the libraries do when they are imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    for distribution, module in NEEDED.items():
        yield distribution, lambda d=distribution, m=module: _needed(d, m)  # type: ignore[misc]
    for distribution in OPTIONAL:
        yield distribution, lambda d=distribution: _optional(d)  # type: ignore[misc]
    yield "cpu cores", _cores
    yield "memory", _memory
    yield "torch threads", _threads
    yield "bfloat16 on cpu", _bfloat16
    yield "cuda", _cuda
    yield "mps", _mps
    yield "embedded weights", _weights
    yield "embedded model", _scores
    yield "hf cache", lambda: str(_hf_cache())
    yield "free at hf cache", lambda: _free(_hf_cache())
    yield "datasets cache", lambda: str(_datasets_cache())
    yield "free at datasets cache", lambda: _free(_datasets_cache())
    yield "free here", lambda: _free(Path.cwd())


def _needed(distribution: str, module: str) -> str:
    import_module(module)
    return metadata.version(distribution)


def _optional(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _offline() -> str:
    found = [f"{name}={os.environ[name]}" for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if name in os.environ]
    return f"{'yes' if any(_is_on(text.split('=')[1]) for text in found) else 'no'} ({', '.join(found) or 'not set'})"


def _is_on(value: str) -> bool:
    return value.upper() in ("1", "ON", "YES", "TRUE")


def _cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{os.cpu_count()}, of which {usable} may be used"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return "unknown"
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        allowed = f", of which {int(limit.read_text()) / GIGA:.1f} GiB may be used"
    except (OSError, ValueError):  # no such limit
        allowed = ""
    return f"{total / GIGA:.1f} GiB{allowed}"


def _threads() -> str:
    import torch

    return f"{torch.get_num_threads()} (OMP_NUM_THREADS: {os.environ.get('OMP_NUM_THREADS', 'not set')})"


def _bfloat16() -> str:
    from ovml.training.precision import multiplies_bfloat16

    return "fast" if multiplies_bfloat16("cpu") else "slow, for want of instructions: train with precision 32-true"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        built = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
        return f"none ({built})"
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    names = [f"{device.name}, {device.total_memory / GIGA:.1f} GiB" for device in devices]
    return f"{'; '.join(names)} (CUDA {torch.version.cuda})"


def _mps() -> str:
    import torch

    return "yes" if torch.backends.mps.is_available() else "none"


def _weights() -> str:
    import transformers

    from ovml.encoders.checkpoints import DEMO, checkpoint_path, load_clip

    transformers.utils.logging.disable_progress_bar()
    size = sum(file.stat().st_size for file in Path(checkpoint_path(DEMO)).iterdir())
    parameters = sum(parameter.numel() for parameter in load_clip(DEMO).parameters())
    return f"{DEMO} loads, {parameters:,} parameters, {size / 1e6:.1f} MB"


def _scores() -> str:
    """Score a drawn scene of one object, in which the model is known to be right."""
    from ovml.classifier import OVMultiLabelClassifier
    from ovml.data.synthetic.scenes import draw_scene, object_names

    scene = draw_scene(*SCENE)
    (thing,) = scene.objects
    expected = object_names(thing)[1]
    model = OVMultiLabelClassifier("ovml-demo", stages=[]).eval()
    best = model.predict_labels(scene.image, [*OTHERS, expected], top_k=1)[0]
    if best.label != expected:  # type: ignore[union-attr]
        raise RuntimeError(f"finds {best.label!r} in a drawn {expected!r}")  # type: ignore[union-attr]
    return f"finds the {expected} of a drawn scene among {len(OTHERS) + 1} labels"


SCENE = (0, "pretrain", 11)
OTHERS = ("blue star", "yellow ring", "green fish", "black cross")


def _hf_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _datasets_cache() -> Path:
    from datasets.config import HF_DATASETS_CACHE

    return Path(HF_DATASETS_CACHE)


def _free(folder: Path) -> str:
    """Free space on the disk of a folder, which may not have been made yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / GIGA:.1f} GiB"
