"""The `ovml` command in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

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


def ovml(*arguments):
    """Run the command in a process of its own."""
    # One thread: where a busy machine splits a sum over fewer threads, its last bit changes.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "ovml", *arguments], env=environment, capture_output=True, text=True)
