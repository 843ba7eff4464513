"""Checkpoints as a trainer writes them, without a training."""

import lightning.pytorch as pl


def save_checkpoint(model, path):
    """Save a checkpoint of a classifier."""
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
