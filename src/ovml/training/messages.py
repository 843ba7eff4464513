"""Which messages of the libraries are shown."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import transformers

from ovml.utils.console import is_quiet

ASKED_FOR = "callbacks", "profilers", "tuner"
"""Packages of Lightning whose messages are those that the user asked for, such as by `verbose`."""
RANK_ZERO = "lightning.pytorch.utilities.rank_zero"
"""The logger that all parts of Lightning send their messages to."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence messages of the libraries about what ovml handles itself, within a block."""
    levels = dict.fromkeys(("lightning.pytorch", "lightning.fabric", "lightning"), logging.WARNING)
    levels |= {f"lightning.pytorch.{name}": logging.WARNING if is_quiet() else logging.INFO for name in ASKED_FOR}
    levels[RANK_ZERO] = logging.INFO
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger(RANK_ZERO).addFilter(_is_asked_for)
    bars = [
        module for module in (transformers.utils.logging, datasets.utils.logging) if module.is_progress_bar_enabled()
    ]
    for library in bars:
        library.disable_progress_bar()
    try:
        with _quiet_warnings():
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        logging.getLogger(RANK_ZERO).removeFilter(_is_asked_for)
        for library in bars:
            library.enable_progress_bar()


@contextmanager
def _quiet_warnings() -> Iterator[None]:
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
