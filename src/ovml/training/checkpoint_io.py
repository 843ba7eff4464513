"""Writing of checkpoints: a kill leaves the old file or the new one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy

from ovml.utils.files import atomic_write


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces and renames it; a kill leaves the old one or the new one.

    Lightning's own writes it to the folder for temporary files, which may be on another disk, and moves it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; one with an address such as `s3://...` is left to Lightning."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()  # torch's own writing to a file aborts the process if the disk is full
        torch.save(checkpoint, buffer)
        with atomic_write(path) as beside:
            beside.write_bytes(buffer.getbuffer())


def write_whole_checkpoints(strategy: Strategy) -> None:
    """Let a strategy write its checkpoints by `WholeCheckpointIO`, unless it or the user has another way of its own."""
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeCheckpointIO()
