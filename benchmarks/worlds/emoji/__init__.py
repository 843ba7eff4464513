"""Scenes of emoji: a harder synthetic data set than the demo's."""

from worlds.emoji.datamodule import EmojiDataModule

__all__ = ["EmojiDataModule"]
