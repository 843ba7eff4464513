"""Real photographs with captions: a small CLIP trained on them, labels from captions, and the comparison."""

from worlds.photos.datamodule import CaptionDataModule

__all__ = ["CaptionDataModule"]
