"""Which messages of the libraries are shown."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ovml.utils.console import is_quiet

ASKED_FOR = "callbacks", "profilers", "tuner"
"""Packages of Lightning whose messages are those that the user asked for, such as by `verbose`."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence messages of the libraries about what ovml handles itself."""
    import datasets
    import transformers

    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ASKED_FOR:
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING if is_quiet() else logging.INFO)
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")  # all parts send their messages there
    rank_zero.setLevel(logging.INFO)
    rank_zero.addFilter(_is_asked_for)
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        for message in (
            "LightningCLI's args parameter is intended",  # other processes are started with the same arguments
            "Checkpoint directory .* exists and is not empty",  # the run folder is ovml's own
            "You requested to overfit but enabled val dataloader shuffling",  # which is in order anyway
            "The number of training batches .* is smaller than the logging interval",
            r"Found \d+ module\(s\) in eval mode",  # the frozen teacher
            ".*does not have many workers",
            "Your `IterableDataset` has `__len__` defined",  # each worker yields its share
            r".*isinstance\(treespec, LeafSpec\)",
            "`training_step` returned `None`",  # a batch without labels is skipped
            "Found keys that are in the model state dict but not in the checkpoint",  # the frozen CLIP's
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def _is_asked_for(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning is a warning, or one that the user asked for."""
    is_notice = not is_quiet() and Path(record.pathname).parent.name in ASKED_FOR
    return is_notice or record.levelno >= logging.WARNING
