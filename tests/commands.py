"""The `ovml` command: in a process of its own, or here in one thread."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from ovml.cli.main import main

SMALL = [
    "--data.train_size",
    "24",
    "--data.eval_size",
    "12",
    "--data.batch_size",
    "8",
    "--trainer.accelerator",
    "cpu",
]


def python_path():
    """PYTHONPATH of a process that finds the classes that tests define; what stood there before stays."""
    tests = Path(__file__).parent
    return os.pathsep.join([str(tests), str(tests / "integration"), os.environ.get("PYTHONPATH", "")])


def ovml(*arguments):
    """Run the command in a process of its own."""
    # One thread: where a busy machine splits a sum over fewer threads, its last bit changes.
    environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "ovml", *arguments], env=environment, capture_output=True, text=True)


@contextmanager
def one_thread():
    """As `ovml` has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def ovml_here(*arguments):
    """Run the command in this process, to the same last bit and without the seconds that a new one takes to start."""
    with one_thread():
        return main(list(arguments))
