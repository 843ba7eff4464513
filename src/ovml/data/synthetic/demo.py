"""The embedded world as a data module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovml.data.base import MultiLabelDataModule, Split
from ovml.data.synthetic.scenes import SEEN_LABELS, UNSEEN_LABELS, scenes
from ovml.encoders.checkpoints import DEMO
from ovml.vocabulary import LabelVocabulary

if TYPE_CHECKING:
    from datasets import Dataset


class DemoDataModule(MultiLabelDataModule):
    """Scenes of coloured, patterned shapes, drawn by Pillow from a seed. Nothing is downloaded.

    Args:
        train_size: Scenes to train on.
        eval_size: Scenes of the validation and of the test split.
        world_seed: Seed of the scenes.
        cache_dir: Where the drawn scenes are kept. Default: that of `datasets`.
        clip: See `MultiLabelDataModule`.
        kwargs: See `MultiLabelDataModule`.

    Example:
        >>> DemoDataModule().vocabulary.unseen[0] in UNSEEN_LABELS
        True
    """

    def __init__(
        self,
        train_size: int = 5000,
        eval_size: int = 1000,
        world_seed: int = 0,
        cache_dir: str | None = None,
        clip: str = DEMO,
        **kwargs: Any,
    ) -> None:
        super().__init__(clip=clip, **kwargs)
        self.sizes = {"train": train_size, "validation": eval_size, "test": eval_size}
        self.world_seed = world_seed
        self.cache_dir = cache_dir

    @property
    def vocabulary(self) -> LabelVocabulary:
        """The world's labels."""
        return LabelVocabulary(SEEN_LABELS, UNSEEN_LABELS)

    def dataset(self, split: Split) -> Dataset:
        """Scenes of a split, drawn once and then read from disk."""
        return scenes(split, self.sizes[split], self.world_seed, self.cache_dir)
